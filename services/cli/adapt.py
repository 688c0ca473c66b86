"""Keep a reward model learning while a policy is trained against it."""

import asyncio

from services.cli.arguments import load_config
from services.control import run_folder
from services.control.adaptation import AdaptConfig, adapt


def main(argv: list[str]) -> int:
    """`trireme adapt adapt.yaml [--section.key value ...]`"""
    config = load_config(
        AdaptConfig,
        argv,
        prog="trireme adapt",
        summary="Labels a live run's samples and retrains its reward model on them, again and again.",
    )
    with run_folder.hold(config.run.dir, resume=False):
        asyncio.run(adapt(config, tell=lambda text: print(text, flush=True)))
    return 0
