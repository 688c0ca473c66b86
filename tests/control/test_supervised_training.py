"""A supervised run on a learner that is no real one: what it learns after its ranks were lost, or the disk was full."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.contracts.errors import CheckpointError, LearnerLost
from services.contracts.records import Json, LearnerReport
from services.control import supervised_training
from services.control.config import SupervisedRunConfig
from services.control.host import Named
from services.control.metrics import read_metrics
from services.control.run_state import RunState
from services.control.supervised_training import train_supervised


class Learner:
    """Remembers what it learnt; its ranks are lost, or the disk is full, in the given steps, counted over all learners.

    Args:
        faults: by the number of the step or save.
    """

    def __init__(self, faults: dict[str, list[int]], calls: dict[str, int]) -> None:
        self.learnt: list[int] = []
        self._faults = faults
        self._calls = calls

    async def step(self, batch: Sequence[int]) -> LearnerReport:
        if self._is_faulty("step"):
            raise LearnerLost("rank 1 died")
        self.learnt += batch
        return LearnerReport(step=len(self.learnt), metrics={"loss": 1.0})

    async def save(self, folder: Path) -> None:
        if self._is_faulty("save"):
            raise CheckpointError("no space left on device")
        folder.mkdir(parents=True)
        (folder / "learnt.json").write_text(json.dumps(self.learnt))

    async def load(self, folder: Path) -> None:
        self.learnt = json.loads((folder / "learnt.json").read_text())

    def _is_faulty(self, what: str) -> bool:
        self._calls[what] = self._calls.get(what, 0) + 1
        return self._calls[what] in self._faults.get(what, [])


class Job:
    """Learns numbers, in no order of its own."""

    examples = tuple(range(100))
    shuffle = False
    task = Named(path="none")

    def __init__(self) -> None:
        self.num_prepared = 0
        self.learnt: list[int] = []

    def num_tokens(self, example: int) -> int:
        return 1

    async def before_steps(self, learner: Any, tell: Callable[[str], None]) -> None:  # Any: the fake
        self.num_prepared += 1

    async def after_step(self, state: RunState, learner: Any) -> tuple[RunState, Mapping[str, float]]:  # Any: ditto
        return state, {}

    def is_over(self, state: RunState) -> bool:
        return False

    async def finish(self, state: RunState, learner: Any) -> Mapping[str, Json]:  # Any: ditto
        self.learnt = learner.learnt
        return {}


Train = Callable[..., Job]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains 6 steps of 2 examples, with a checkpoint after every second; gives the job."""

    def run(faults: dict[str, list[int]], **settings: int) -> Job:
        calls: dict[str, int] = {}

        @asynccontextmanager
        async def start(*_: object) -> AsyncIterator[tuple[Learner, Callable[[Learner], Awaitable[Learner]]]]:
            async def restart(lost: Learner) -> Learner:
                return Learner(faults, calls)

            yield Learner(faults, calls), restart

        monkeypatch.setattr(supervised_training, "start_supervised_learner", start)
        train = {"num_steps": 6, "prompts_per_step": 2, "checkpoint_every": 2} | settings
        config = SupervisedRunConfig.model_validate(
            {
                "run": {"dir": tmp_path},
                "model": {"path": "fake"},
                "data": {"prompts": "fake"},
                "metrics": {"sinks": ()},
                "train": train,
            }
        )
        job = Job()
        assert not train_supervised(config, job, resume=False)
        return job

    return run


def test_a_lost_learner_goes_on_from_its_last_checkpoint(train: Train, tmp_path: Path) -> None:
    job = train({"step": [4, 6]})  # The fourth step's, and the second one of the learner after that.
    assert job.learnt == list(range(12))
    assert [row.step for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["num_steps"], summary["num_samples"], job.num_prepared) == (6, 12, 1)


def test_one_that_was_lost_before_any_checkpoint_begins_again(train: Train) -> None:
    assert train({"step": [2]}).learnt == list(range(12))


def test_a_learner_that_is_lost_too_often_ends_the_run(train: Train) -> None:
    with pytest.raises(LearnerLost, match="rank 1 died"):
        train({"step": [4, 6]}, max_learner_restarts=1)


def test_a_checkpoint_that_the_disk_refuses_costs_nothing_but_itself(train: Train, tmp_path: Path) -> None:
    assert train({"save": [1, 2]}).learnt == list(range(12))
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == ["step_6"]
    with pytest.raises(CheckpointError, match="no space left"):
        train({"save": [1, 2]}, max_failed_checkpoints=2)
