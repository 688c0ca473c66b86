"""Train a reward model on judged completions."""

from pathlib import Path

from services.cli.arguments import load_config, take_switch
from services.cli.held_run import run_in_folder
from services.control import run_folder
from services.control.config import RewardModelRunConfig
from services.control.reward_model_facts import judgement
from services.control.reward_model_job import RewardModelJob
from services.control.reward_model_preflight import check_reward_model
from services.control.run_record import read_run
from services.control.supervised_training import train_supervised


def main(argv: list[str]) -> int:
    """`trireme reward-model run.yaml [--section.key value ...] [--resume]`"""
    resume, argv = take_switch(argv, "--resume")
    config = load_config(
        RewardModelRunConfig,
        argv,
        prog="trireme reward-model",
        summary="Trains a reward model on judged completions. --resume: go on from the newest checkpoint in run.dir.",
        switches=("--resume",),
    )
    job = RewardModelJob(config, check_reward_model(config))

    def work() -> bool:
        job.write_split()
        return train_supervised(config, job, resume=resume)

    code = run_in_folder(config, argv, command="trireme reward-model", resume=resume, work=work)
    if code == 0:
        _tell(config.run.dir)
    return code


def _tell(folder: Path) -> None:
    """How the model was judged, and where it lies."""
    found = judgement(read_run(folder))
    assert found is not None
    print(f"judged on {found.judged_on}:")
    for name, value in found.scores:
        print(f"  {name:36} {value}")
    print(f"export  {folder / run_folder.EXPORT}")
