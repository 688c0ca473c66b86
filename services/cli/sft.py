"""Train a policy on demonstrations."""

from services.cli.arguments import load_config, take_switch
from services.cli.held_run import run_in_folder
from services.cli.plan import print_supervised_plan
from services.control import run_folder
from services.control.config import SupervisedRunConfig
from services.control.demonstration_job import DemonstrationJob
from services.control.preflight import check_supervised
from services.control.supervised_training import train_supervised


def main(argv: list[str]) -> int:
    """`trireme sft run.yaml [--section.key value ...] [--dry-run] [--resume]`"""
    dry_run, argv = take_switch(argv, "--dry-run")
    resume, argv = take_switch(argv, "--resume")
    config = load_config(
        SupervisedRunConfig,
        argv,
        prog="trireme sft",
        summary="Supervised fine-tuning on demonstrations. --dry-run: show which tokens are learnt, start nothing. "
        "--resume: go on from the newest checkpoint in run.dir.",
        switches=("--dry-run", "--resume"),
    )
    inputs = check_supervised(config)
    if dry_run:
        print_supervised_plan(config, inputs)
        return 0
    job = DemonstrationJob(config, inputs.demonstrations)
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
