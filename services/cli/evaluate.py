"""Measure accuracy and pass@k of a model on held-out prompts."""

import asyncio
import json

from services.cli.arguments import load_config
from services.contracts.errors import UserError
from services.contracts.records import Json
from services.control import run_folder
from services.control.config import RunConfig
from services.control.evaluation import Evaluation
from services.control.evaluation import evaluate as measure
from services.control.parts import start_samplers
from services.control.preflight import RunInputs, check_run


def main(argv: list[str]) -> int:
    """`trireme evaluate run.yaml [--section.key value ...]`: prints JSON, also into evaluation.json."""
    config = load_config(
        RunConfig,
        argv,
        prog="trireme evaluate",
        summary="Greedy accuracy on evaluate.prompts; with evaluate.num_samples also sampled accuracy and pass@k.",
    )
    inputs = check_run(config)
    if inputs.evaluation_prompts is None:
        raise UserError("evaluate.prompts names no data; give a file or hub name with held-out prompts")
    evaluation = asyncio.run(_evaluate(config, inputs))
    metrics = {name.removeprefix("evaluation/"): round(value, 4) for name, value in evaluation.metrics().items()}
    found: dict[str, Json] = {"model": config.model.path, "prompts": len(evaluation.completions), **metrics}
    config.run.dir.mkdir(parents=True, exist_ok=True)
    run_folder.write_summary(config.run.dir, found, name=run_folder.EVALUATION_FILE)
    print(json.dumps(found))
    return 0


async def _evaluate(config: RunConfig, inputs: RunInputs) -> Evaluation:
    assert inputs.evaluation_prompts is not None
    async with start_samplers(config) as parts:
        return await measure(
            inputs.evaluation_prompts.prompts,
            rollouts=parts.rollouts,
            rewards=parts.rewards,
            sampling=config.rollout.to_sampling(seed=config.run.seed),
            config=config.evaluate,
            gold=parts.gold,
        )
