"""Train a policy on preferences."""

from services.cli.arguments import load_config, take_switch
from services.cli.held_run import run_in_folder
from services.cli.plan import print_preference_plan
from services.control import run_folder
from services.control.config import PreferenceRunConfig
from services.control.preference_job import PreferenceJob
from services.control.preference_preflight import check_preferences
from services.control.supervised_training import train_supervised


def main(argv: list[str]) -> int:
    """`trireme prefer run.yaml [--section.key value ...] [--dry-run] [--resume]`"""
    dry_run, argv = take_switch(argv, "--dry-run")
    resume, argv = take_switch(argv, "--resume")
    config = load_config(
        PreferenceRunConfig,
        argv,
        prog="trireme prefer",
        summary="Trains a policy on preferences. --dry-run: show which rows and tokens are learnt, start nothing. "
        "--resume: go on from the newest checkpoint in run.dir.",
        switches=("--dry-run", "--resume"),
    )
    found = check_preferences(config)
    if dry_run:
        print_preference_plan(config, found)
        return 0
    job = PreferenceJob(config, found)

    def work() -> bool:
        job.look()
        return train_supervised(config, job, resume=resume)

    code = run_in_folder(config, argv, command="trireme prefer", resume=resume, work=work)
    if code == 0:
        print(f"export  {config.run.dir / run_folder.EXPORT}")
    return code
