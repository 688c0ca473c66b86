"""Write down completions of a model on the prompts of a data set."""

import asyncio
from pathlib import Path

from services.cli.arguments import load_config
from services.control import run_folder
from services.control.config import RunConfig
from services.control.parts import start_workers
from services.control.preflight import RunInputs, check_run
from services.control.sampling import write_completions


def main(argv: list[str]) -> int:
    """`trireme sample run.yaml [--section.key value ...]`: writes completions.jsonl into run.dir."""
    config = load_config(
        RunConfig,
        argv,
        prog="trireme sample",
        summary="Sample rollout.samples_per_prompt completions of every prompt in data; no reward is asked.",
    )
    inputs = check_run(config)
    with run_folder.hold(config.run.dir, resume=False):
        path = asyncio.run(_sample(config, inputs))
    print(
        f"{config.rollout.samples_per_prompt} completions of each of {len(inputs.prompts.prompts)} prompts, in {path}"
    )
    return 0


async def _sample(config: RunConfig, inputs: RunInputs) -> Path:
    async with start_workers(config) as fleet:
        return await write_completions(
            inputs.prompts.prompts,
            rollouts=fleet.pool,
            sampling=config.rollout.to_sampling(seed=config.run.seed),
            folder=config.run.dir,
        )
