"""Label the steps of completions by how often the policy's continuations of them are right."""

import asyncio
import json
import sys
from collections.abc import Coroutine, Sequence
from statistics import fmean
from typing import Any

from services.cli.arguments import load_config
from services.contracts.errors import TriremeError, UserError
from services.contracts.records import Json
from services.control.interrupts import catch_interrupts
from services.control.labelled_completions import GivenCompletions, SampledCompletions, read_completions
from services.control.parts import start_samplers
from services.control.preflight import RunInputs, check_run
from services.control.step_label_job import (
    LABELS_FILE,
    Row,
    StepLabelJob,
    StepLabelsRunConfig,
    open_step_label_job,
)
from services.control.step_labels import StepLabeller


def main(argv: list[str]) -> int:
    """`trireme label-steps run.yaml [--section.key value ...]`: writes step_labels.jsonl, prints one JSON object."""
    config = load_config(
        StepLabelsRunConfig,
        argv,
        prog="trireme label-steps",
        summary="Monte-Carlo labels: continue completions from the end of each step, and score where that leads. "
        "A job that was stopped goes on where it stopped.",
    )
    inputs = check_run(config)
    given = _given(config, inputs)
    with open_step_label_job(config) as job:
        rows = _kept(job, _label(job, inputs, given))
    print(json.dumps(_summary(job, rows)))
    return 0


def _given(config: StepLabelsRunConfig, inputs: RunInputs) -> GivenCompletions | None:
    """Read before anything is started."""
    field = config.labels.completion_field
    if field is None:
        return None
    return read_completions(config.data, inputs, field=field, max_tokens=config.rollout.max_completion_tokens)


def _kept(job: StepLabelJob, work: Coroutine[Any, Any, list[Row]]) -> list[Row]:  # Any: nobody sends to it
    """What the work returns; where it ends early, say that nothing is lost."""
    try:
        return asyncio.run(work)
    except UserError:
        raise
    except (TriremeError, KeyboardInterrupt, asyncio.CancelledError) as error:
        _tell(f"{len(job.rows)} completions are kept in {job.config.run.dir}; the same command goes on from there")
        if isinstance(error, asyncio.CancelledError):
            raise KeyboardInterrupt from error
        raise


async def _label(job: StepLabelJob, inputs: RunInputs, given: GivenCompletions | None) -> list[Row]:
    config = job.config
    sampling = config.rollout.to_sampling(seed=config.run.seed)
    with catch_interrupts(_tell):
        async with start_samplers(config) as parts:
            labeller = StepLabeller(
                config.labels,
                rollouts=parts.rollouts,
                rewards=parts.rewards,
                decode=inputs.decode,
                sampling=sampling,
                correctness=config.evaluate,
            )
            completions = given or SampledCompletions(rollouts=parts.rollouts, sampling=sampling)
            return await job.run(inputs.prompts.prompts, completions, labeller, tell=_tell)


def _tell(what: str) -> None:
    print(what, file=sys.stderr)


def _summary(job: StepLabelJob, rows: Sequence[Row]) -> dict[str, Json]:
    labels = [step["label"] for row in rows for step in row["steps"]]
    return {
        "file": str(job.config.run.dir / LABELS_FILE),
        "completions": len(rows),
        "steps": len(labels),
        "mean_label": round(fmean(labels), 4) if labels else None,
        "failed": job.num_failed,
    }
