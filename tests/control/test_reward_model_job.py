"""Which weights a reward model's run keeps, when it ends, and what it leaves beside them; the learner is played."""

import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.reward_config import RewardModelConfig
from rollout_workers.reward_data import RewardExamples
from services.contracts.errors import TriremeError
from services.contracts.reward_example import RewardExample
from services.contracts.reward_model import read_canary, read_card
from services.contracts.settings import ModelConfig
from services.control.config import RewardModelRunConfig
from services.control.reward_model_job import RewardModelJob
from services.control.reward_model_preflight import RewardModelInputs
from services.control.run_state import RunState
from tests.tiny import tiny_tokenizer


class PlayedLearner:
    """Measures the losses that it is told to, and scores a text with its number of tokens, a step with its place."""

    def __init__(self, losses: Sequence[float] = (), *, scale: float = 1.0) -> None:
        self._losses = iter(losses)
        self._scale = scale
        self.num_exports = 0
        self.settings: OptimizerConfig | None = None

    async def evaluate(self, examples: Sequence[RewardExample]) -> dict[str, float]:
        return {"loss": next(self._losses), "accuracy": 0.5}

    async def export(self, folder: Path) -> None:
        self.num_exports += 1
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(f"weights {self.num_exports}")

    async def read(self, model: ModelConfig, learner: OptimizerConfig) -> None:
        self.settings = learner

    async def answers(self, examples: Sequence[RewardExample]) -> list[float]:
        return [
            self._scale * number
            for example in examples
            for number in example.positions or [len(ids) for ids in example.sequences]
        ]


def pair(row: int, *lengths: int) -> RewardExample:
    return RewardExample(
        row=row,
        sequences=tuple(array("i", [2] * length) for length in lengths),
        positions=array("i"),
        targets=(0.0, 0.0),
        completion_lengths=lengths,
    )


def make_job(folder: Path, *, validation: bool = True, **evaluate: Any) -> RewardModelJob:
    config = RewardModelRunConfig(
        run={"dir": folder},
        model={"path": "nowhere"},
        data={"examples": "pairs.jsonl"},
        learner={"from_scratch": True},
        train={"num_steps": 50},
        evaluate={"every": 10} | evaluate,
    )
    examples = RewardExamples(training=[pair(0, 3, 1), pair(1, 4, 2)], validation=[pair(2, 5, 1)] if validation else [])
    held_out = None if validation else RewardExamples(training=[pair(0, 1, 4)])
    inputs = RewardModelInputs(examples=examples, held_out=held_out, tokenizer=tiny_tokenizer(), max_tokens=64)
    return RewardModelJob(config, inputs)


async def go(job: RewardModelJob, learner: Any, *, until: int) -> RunState:  # Any: a stand-in for a LearnerGroup
    """Steps up to `until`, as the run takes them."""
    state = RunState(step=0, prompt_position=0)
    for step in range(1, until + 1):
        state, _ = await job.after_step(replace(state, step=step), learner)
        if job.is_over(state):
            break
    return state


async def test_the_weights_of_the_lowest_validation_loss_are_kept(tmp_path: Path) -> None:
    learner = PlayedLearner([0.7, 0.5, 0.6, math.nan, 0.4])
    state = await go(make_job(tmp_path), learner, until=50)
    assert (state.best_step, state.best_loss) == (50, 0.4)
    assert learner.num_exports == 3
    assert (tmp_path / "export" / "model.safetensors").read_text() == "weights 3"


async def test_a_run_ends_when_patience_does(tmp_path: Path) -> None:
    losses = [0.7, 0.5, 0.6, 0.5, 0.4]
    assert (await go(make_job(tmp_path / "a", patience=2), PlayedLearner(losses), until=50)).step == 40
    assert (await go(make_job(tmp_path / "b"), PlayedLearner(losses), until=50)).step == 50


async def test_without_validation_the_last_weights_are_kept_and_judged_on_the_held_out_rows(tmp_path: Path) -> None:
    job, learner = make_job(tmp_path, validation=False, examples="held_out.jsonl"), PlayedLearner()
    state = await go(job, learner, until=50)
    assert learner.num_exports == 0
    found: Any = await job.finish(state, learner)
    assert found["best_step"] == 50
    assert found["evaluation"]["judged_on"] == "held_out.jsonl"
    assert found["evaluation"]["accuracy"] == 0.0


async def test_the_card_says_how_scores_are_normalised_and_the_canary_what_they_are(tmp_path: Path) -> None:
    job, learner = make_job(tmp_path), PlayedLearner([0.5])
    state = await go(job, learner, until=10)
    found: Any = await job.finish(state, learner)
    card = read_card(tmp_path / "export")
    assert (card.mean, card.std) == (2.5, pytest.approx(math.sqrt(1.25)))  # Of 3, 1, 4 and 2 tokens.
    assert card.max_tokens == 64
    for sample in read_canary(tmp_path / "export"):
        num_tokens = min(64, len(sample.prompt + sample.completion))
        assert sample.scores == (pytest.approx((num_tokens - 2.5) / card.std),)
    assert isinstance(learner.settings, RewardModelConfig)
    assert not learner.settings.from_scratch
    assert found["rows"] == {"learnt": 2, "validation": 1, "too_long": 0, "nothing_to_learn": 0}


async def test_other_weights_have_another_version_unless_it_is_given(tmp_path: Path) -> None:
    versions = set()
    for number, losses in enumerate(([0.5], [0.5, 0.4])):
        job, learner = make_job(tmp_path / str(number)), PlayedLearner(losses)
        await job.finish(await go(job, learner, until=10 * len(losses)), learner)
        versions.add(read_card(tmp_path / str(number) / "export").version)
    assert len(versions) == 2


async def test_a_model_that_scores_everything_alike_is_refused(tmp_path: Path) -> None:
    job, learner = make_job(tmp_path), PlayedLearner([0.7], scale=0.0)
    state = await go(job, learner, until=10)
    with pytest.raises(TriremeError, match=r"scores of spread 0\.0, so it has learnt nothing"):
        await job.finish(state, learner)
    assert not (tmp_path / "export" / "reward_model.json").exists()


async def test_the_steps_of_a_process_model_are_judged_and_in_the_canary(tmp_path: Path) -> None:
    def steps(*positions: int) -> RewardExample:
        return RewardExample(
            row=0,
            sequences=(array("i", [2] * 9),),
            positions=array("i", positions),
            targets=tuple(float(position > 3) for position in positions),
            completion_lengths=(9,),
        )

    config = RewardModelRunConfig(
        run={"dir": tmp_path},
        model={"path": "nowhere"},
        data={"examples": "steps.jsonl"},
        learner={"objective": "process"},
    )
    examples = RewardExamples(training=[steps(1, 5), steps(3)], validation=[steps(0, 2, 7)])
    inputs = RewardModelInputs(examples=examples, held_out=None, tokenizer=tiny_tokenizer(), max_tokens=64)
    job, learner = RewardModelJob(config, inputs), PlayedLearner([0.5])
    state, _ = await job.after_step(RunState(step=25, prompt_position=0), learner)
    found: Any = await job.finish(state, learner)
    card = read_card(tmp_path / "export")
    assert (card.head, card.mean) == ("process", 3.0)  # Of steps at 1, 5 and 3.
    assert found["evaluation"]["num_labels"] == 3
    assert found["evaluation"]["baselines"] == {"majority": pytest.approx(2 / 3)}
    assert [len(sample.scores) for sample in read_canary(tmp_path / "export")] == [2, 1, 1, 1]


def test_the_split_is_written_down(tmp_path: Path) -> None:
    make_job(tmp_path).write_split()
    split = json.loads((tmp_path / "split.json").read_text())
    assert (split["examples"], split["validation_rows"]) == ("pairs.jsonl", [2])
