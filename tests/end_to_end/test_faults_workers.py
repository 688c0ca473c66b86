"""Rollout workers that are killed or freeze under a synchronous run of real parts: no prompt and no weight is lost."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from services.control.ledger_events import Joined, Left, Requeued, Trained
from tests.end_to_end.command import started, write_config
from tests.end_to_end.faults import (
    FOUND_OUT_WITHIN_S,
    REQUEUED_WITHIN_S,
    Doing,
    came,
    doing,
    freeze,
    has_served,
    paused,
    steps_done,
    violations,
    weights,
    workers,
)
from tests.end_to_end.tiny_run import long_run_sections


def test_workers_that_are_killed_are_replaced_and_change_no_weight(
    undisturbed_long: Path, task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", **long_run_sections(task, rollout={"num_workers": 2}))
    with started("train", config, cwd=tmp_path) as running:
        running.wait_until(lambda: steps_done(run) >= 3, "three steps")
        victim = max(workers(run))
        killed = freeze(running, run, victim, while_it="samples")
        os.kill(workers(run)[victim], signal.SIGKILL)
        assert came(running, run, Requeued, since=killed).time - killed <= REQUEUED_WITHIN_S
        with paused(run):
            joined = came(running, run, Joined, since=killed)
        running.wait_until(lambda: has_served(run, joined.worker), "the replacement to serve")
        killed = freeze(running, run, joined.worker, while_it="loads")
        os.kill(joined.pid, signal.SIGKILL)
        left = came(running, run, Left, since=killed)
        assert left.worker == joined.worker
        assert left.time - killed <= REQUEUED_WITHIN_S
        with paused(run):
            last = min(workers(run))
            running.wait_until(lambda: doing(run, last) == "waits", "the worker that is left to be idle")
            killed = time.time()
            os.kill(workers(run)[last], signal.SIGKILL)
            left = came(running, run, Left, since=killed)
        assert left.worker == last
        assert left.time - killed <= REQUEUED_WITHIN_S
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert weights(run) == weights(undisturbed_long)
    assert violations(run) == {}


@pytest.mark.parametrize(("while_it", "probes"), [("loads", {}), ("samples", {"health_timeout_s": 2.0})])
def test_a_worker_that_freezes_is_found_out_and_replaced_in_time(
    while_it: Doing, probes: dict[str, Any], undisturbed_long: Path, task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", **long_run_sections(task, rollout={"num_workers": 2, **probes}))
    with started("train", config, cwd=tmp_path) as running:
        running.wait_until(lambda: steps_done(run) >= 3, "three steps")
        victim = max(workers(run))
        frozen = freeze(running, run, victim, while_it=while_it)
        left = came(running, run, Left, since=frozen)
        assert left.worker == victim
        assert "no token" in left.reason
        assert left.time - frozen <= FOUND_OUT_WITHIN_S
        print(f"given up after {left.time - frozen:.1f} s")
        came(running, run, Trained, since=left.time)
        with paused(run):
            joined = came(running, run, Joined, since=frozen)
        running.wait_until(lambda: has_served(run, joined.worker), "the replacement to serve")
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert weights(run) == weights(undisturbed_long)
    assert violations(run) == {}
