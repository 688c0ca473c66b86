"""What a run on preferences does around its steps; the learner is played."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppo_learner.optimizer_config import OptimizerConfig
from rollout_workers.preference_data import PreferenceExamples
from services.contracts.preference_example import PreferenceExample
from services.contracts.records import Demonstration
from services.contracts.settings import ModelConfig
from services.control.config import PreferenceRunConfig
from services.control.preference_job import PreferenceJob
from services.control.reference_logprobs import REFERENCE_FILE
from services.control.run_state import RunState


class PlayedLearner:
    """Measures the losses that it is told to, and gives a completion minus its number of tokens."""

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._losses = iter(losses)
        self.num_exports = 0
        self.evaluated: Sequence[PreferenceExample] = ()
        self.model: ModelConfig | None = None

    async def answers(self, examples: Sequence[PreferenceExample]) -> list[float]:
        return [-float(len(one.token_ids)) for example in examples for one in example.completions]

    async def evaluate(self, examples: Sequence[PreferenceExample]) -> dict[str, float]:
        self.evaluated = examples
        return {"loss": next(self._losses), "accuracy": 0.75}

    async def export(self, folder: Path) -> None:
        self.num_exports += 1
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(f"weights {self.num_exports}")

    async def read(self, model: ModelConfig, learner: OptimizerConfig) -> None:
        self.model = model


def pair(row: int, chosen: int, rejected: int) -> PreferenceExample:
    completions = (
        Demonstration(token_ids=array("i", [2] * length), loss_mask=array("b", [0] + [1] * (length - 1)))
        for length in (chosen, rejected)
    )
    return PreferenceExample(row=row, completions=tuple(completions))


def make_job(folder: Path, *, algorithm: str = "dpo", validation: bool = True) -> PreferenceJob:
    config = PreferenceRunConfig(
        run={"dir": folder},
        model={"path": "nowhere/model"},
        data={"examples": "pairs.jsonl"},
        learner={"algorithm": algorithm},
        train={"num_steps": 30, "prompts_per_step": 2},
        evaluate={"every": 10, "patience": 2},
    )
    found = PreferenceExamples(training=[pair(0, 3, 4), pair(1, 5, 6)], validation=[pair(2, 7, 8)] * validation)
    found.left_out["too_long"] += 4
    return PreferenceJob(config, found)


async def go(job: PreferenceJob, learner: Any, *, until: int) -> RunState:  # Any: a stand-in for a LearnerGroup
    """All steps up to `until`, as the run takes them."""
    await job.before_steps(learner, lambda line: None)
    state = RunState(step=0, prompt_position=0)
    for step in range(1, until + 1):
        state, _ = await job.after_step(replace(state, step=step), learner)
        if job.is_over(state):
            break
    return state


async def test_every_row_gets_the_logprobs_of_the_initial_weights(tmp_path: Path) -> None:
    job, learner = make_job(tmp_path), PlayedLearner([0.7])
    await go(job, learner, until=10)
    assert [example.reference for example in job.examples] == [(-3.0, -4.0), (-5.0, -6.0)]
    assert [example.reference for example in learner.evaluated] == [(-7.0, -8.0)]
    assert (tmp_path / REFERENCE_FILE).exists()


@pytest.mark.parametrize("algorithm", ["simpo", "orpo"])
async def test_what_needs_no_reference_computes_none(algorithm: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, algorithm=algorithm)
    await go(job, PlayedLearner([0.7]), until=10)
    assert [example.reference for example in job.examples] == [(), ()]
    assert not (tmp_path / REFERENCE_FILE).exists()


async def test_the_export_of_lowest_validation_loss_is_measured_anew(tmp_path: Path) -> None:
    job, learner = make_job(tmp_path), PlayedLearner([0.6, math.nan, 0.7, 0.5])
    state = await go(job, learner, until=30)
    assert (state.step, state.best_step, learner.num_exports) == (30, 10, 1)
    found: Any = await job.finish(state, learner)
    assert learner.model is not None and learner.model.path == str(tmp_path / "export")
    assert found["validation"] == {"loss": 0.5, "accuracy": 0.75}
    assert (found["best_step"], found["accuracy_after"]) == (10, 0.75)
    assert found["rows"] == {"learnt": 2, "validation": 1, "too_long": 4}


async def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    job, learner = make_job(tmp_path, validation=False), PlayedLearner()
    found: Any = await job.finish(await go(job, learner, until=30), learner)
    assert (tmp_path / "export" / "model.safetensors").read_text() == "weights 1"
    assert (found["best_step"], found["accuracy_after"], found["validation"]) == (30, None, {})
