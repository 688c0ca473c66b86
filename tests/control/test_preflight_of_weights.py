"""Transports and colocation that cannot be, refused before anything starts; and what colocated processes ask for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from services.contracts.errors import DeadlineExceeded, UserError
from services.control.config import RunConfig
from services.control.learner_group import LearnerGroup
from services.control.parts import run_demands
from services.control.preflight import check_run

ON_GPUS: dict[str, Any] = {"rollout": {"gpus_per_worker": 1}, "cluster": {"gpus_per_learner_rank": 1}}
COLOCATED: dict[str, Any] = ON_GPUS | {"rollout": {"gpus_per_worker": 1, "colocate": True}}


def config(transport: str, sections: dict[str, Any], **others: Any) -> RunConfig:
    return RunConfig(
        **{
            "model": {"path": "./nowhere"},
            "data": {"prompts": "nowhere.jsonl"},
            "reward": {"services": [{"name": "exact_match"}]},
            "weights": {"transport": transport},
        }
        | sections
        | others
    )


REFUSED = [
    ("pigeon", {}, r"is 'pigeon'; there are shared_memory, disk, nccl, ipc"),
    ("nccl", {}, r"from GPU to GPU, and rollout\.gpus_per_worker is 0, cluster\.gpus_per_learner_rank 0"),
    ("nccl", {"rollout": {"gpus_per_worker": 1}}, r"gpus_per_worker is 1, cluster\.gpus_per_learner_rank 0"),
    ("ipc", ON_GPUS, r"needs learner and worker on one GPU, and rollout\.colocate is false"),
    ("nccl", COLOCATED, r"NCCL takes one process of each GPU; set weights\.transport to ipc or shared_memory"),
    ("ipc", COLOCATED | {"learner": {"num_ranks": 2}}, r"learner\.num_ranks is 2; set it to 1"),
    (
        "nccl",
        ON_GPUS | {"weights": {"transport": "nccl", "folder": "/shared"}},
        r"folder is /shared, and .* nccl; .* of the transport disk",
    ),
    ("disk", {"weights": {"transport": "disk", "folder": "shared"}}, r"weights\.folder is shared, .* an absolute path"),
    ("disk", COLOCATED | {"cluster": {}}, r"cluster\.gpus_per_learner_rank is 0; set it to 1"),
]


@pytest.mark.parametrize(("transport", "sections", "message"), REFUSED)
def test_weights_that_cannot_travel_are_refused(transport: str, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_run(config(transport, sections))


def test_who_takes_turns_on_a_gpu_does_not_sample_ahead() -> None:
    strict = config("ipc", COLOCATED)
    ahead = strict.model_copy(update={"train": strict.train.model_copy(update={"max_staleness": 1})})

    with pytest.raises(UserError, match=r"train\.max_staleness is 1; set it to 0"):
        check_run(ahead)


@pytest.mark.parametrize(
    ("transport", "sections"),
    [("nccl", ON_GPUS), ("ipc", COLOCATED), ("shared_memory", COLOCATED), ("disk", {})],
)
def test_what_can_be_passes_on_to_the_next_check(transport: str, sections: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\.path"):
        check_run(config(transport, sections))


def test_colocation_needs_one_worker_on_a_gpu() -> None:
    for rollout in ({"colocate": True}, {"colocate": True, "gpus_per_worker": 1, "num_workers": 2}):
        with pytest.raises(ValidationError, match="colocate puts one worker and one learner rank on one GPU"):
            config("ipc", COLOCATED | {"rollout": rollout})


def test_colocated_processes_ask_for_half_a_gpu_each_and_others_for_a_whole_one() -> None:
    assert [demand.gpus for demand in run_demands(config("ipc", COLOCATED))] == [0.5, 0.5]
    assert [demand.gpus for demand in run_demands(config("nccl", ON_GPUS))] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("threads", "cluster", "cpus"),
    [
        ("1", {}, 1),
        ("999", {}, 8),
        ("0", {}, 8),
        ("", {}, 8),
        ("1", {"cpus_per_learner_rank": 3}, 3),
        ("1", {"address": "auto"}, 8),  # Where Ray sets it for the command itself.
    ],
)
def test_a_learner_takes_at_most_the_threads_that_the_user_s_environment_permits(
    monkeypatch: pytest.MonkeyPatch, threads: str, cluster: dict[str, Any], cpus: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    (rank, _) = run_demands(config("disk", {"cluster": cluster}))
    assert rank.cpus == cpus


async def test_a_step_does_not_begin_before_the_gpu_is_free() -> None:
    @asynccontextmanager
    async def nobody_sleeps() -> AsyncIterator[None]:
        raise DeadlineExceeded(waited_for="the engine to sleep", waited_s=1.0, advice="see its log")
        yield

    learner = LearnerGroup([], start_timeout_s=1.0, timeout_s=1.0, pulse_timeout_s=1.0, around_step=nobody_sleeps)

    with pytest.raises(DeadlineExceeded, match="the engine to sleep"):
        await learner.step([])
