"""Measure accuracy and pass@k of a model on held-out prompts, alone or against the model before."""

import asyncio
import json
import sys

from services.cli.arguments import load_config
from services.contracts.errors import RegressionBreach
from services.control import run_folder
from services.control.evaluation_job import EvaluateRunConfig, Measured, check_evaluation, measure
from services.control.regression_gate import breaches


def main(argv: list[str]) -> int:
    """`trireme evaluate run.yaml [--against MODEL] [--section.key value ...]`: writes evaluation.json and prints it."""
    config = load_config(
        EvaluateRunConfig,
        argv,
        prog="trireme evaluate",
        summary="Greedy accuracy on evaluate.prompts and each suite; with num_samples sampled accuracy and pass@k too. "
        "--against MODEL: compare with that model prompt by prompt; exit code 3 where a gate is breached.",
    )
    inputs = check_evaluation(config)
    measured = asyncio.run(measure(config, inputs))
    found = measured.to_row(config)
    config.run.dir.mkdir(parents=True, exist_ok=True)
    run_folder.write_summary(config.run.dir, found, name=run_folder.EVALUATION_FILE)
    for comparison in measured.comparisons:
        print(comparison, file=sys.stderr)
    print(json.dumps(found), flush=True)
    _raise_breach(measured)
    return 0


def _raise_breach(measured: Measured) -> None:
    stopped = breaches(measured.comparisons, "stop")
    if stopped:
        names = ", ".join(one.name for one in stopped)
        raise RegressionBreach(f"{names} fell further than evaluate's gates let it; see docs/forgetting.md")
