"""Train a policy on demonstrations."""

from services.cli.arguments import load_config, take_switch
from services.cli.held_run import run_in_folder
from services.control import run_folder
from services.control.config import SupervisedRunConfig
from services.control.demonstration_job import DemonstrationJob
from services.control.preflight import check_supervised
from services.control.supervised_training import train_supervised


def main(argv: list[str]) -> int:
    """`trireme sft run.yaml [--section.key value ...] [--resume]`"""
    resume, argv = take_switch(argv, "--resume")
    config = load_config(
        SupervisedRunConfig,
        argv,
        prog="trireme sft",
        summary="Supervised fine-tuning on demonstrations. --resume: go on from the newest checkpoint in run.dir.",
    )
    job = DemonstrationJob(config, check_supervised(config))
    code = run_in_folder(
        config,
        argv,
        command="trireme sft",
        resume=resume,
        work=lambda: train_supervised(config, job, resume=resume),
    )
    if code == 0:
        print(f"export  {config.run.dir / run_folder.EXPORT}")
    return code
