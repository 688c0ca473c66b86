"""Nodes of a Ray cluster that are lost under a run of real parts: one dies, one is cut off and comes back too late."""

import time
from pathlib import Path

import pytest

from services.control import run_folder, run_state
from services.control.ledger_events import Joined, Left, RunStarted
from tests.end_to_end.command import started, write_config
from tests.end_to_end.conftest import undisturbed
from tests.end_to_end.faults import (
    FOUND_OUT_WITHIN_S,
    RESTORED_WITHIN_S,
    came,
    events,
    has_served,
    paused,
    steps_done,
    violations,
    weights,
    workers,
)
from tests.end_to_end.tiny_run import long_run_sections
from tests.ray_nodes import Node, Nodes, let_commands_join, ray_nodes

TWO_THREADS = {"cpus_per_learner_rank": 2}
"""More than there is room for beside the head; with other threads, sums are rounded otherwise."""


def home(nodes: Nodes, pid: int) -> Node:
    """The node on which a process runs."""
    return next(node for node in nodes.nodes if pid in {process.pid for process in node.family()})


def seconds_to_start(run: Path) -> float:
    """What the first workers took."""
    return max(event.time for event in events(run, Joined)[:2]) - events(run, RunStarted)[0].time


def test_a_run_outlives_the_loss_of_two_nodes_and_trains_what_it_would_have(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "undisturbed").mkdir()
    expected = undisturbed(task, tmp_path / "undisturbed", cluster=TWO_THREADS)
    run = tmp_path / "run"
    sections = long_run_sections(task, rollout={"num_workers": 2}, cluster=TWO_THREADS | {"address": "auto"})
    with ray_nodes(2, 1, 1, 1) as nodes:  # The learner fits on the head alone, and a worker on each of the others.
        let_commands_join(nodes, monkeypatch)
        with started("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path) as running:
            running.wait_until(lambda: steps_done(run) >= 3, "three steps")
            first, second = workers(run)
            lost = time.time()
            home(nodes, workers(run)[first]).kill()
            left = came(running, run, Left, since=lost)
            assert left.worker == first
            assert left.time - lost <= FOUND_OUT_WITHIN_S
            with paused(run):
                joined = came(running, run, Joined, since=lost)
                # Most of it is the start of a worker, which takes longer than that where others keep the cores busy.
                assert joined.time - lost <= max(RESTORED_WITHIN_S, 3 * seconds_to_start(run))
                print(
                    f"node killed: given up after {left.time - lost:.1f} s, replaced after {joined.time - lost:.1f} s"
                )
            running.wait_until(lambda: has_served(run, joined.worker), "the replacement to serve")

            cut_off = home(nodes, workers(run)[second])
            lost = time.time()
            cut_off.freeze()
            left = came(running, run, Left, since=lost)
            assert left.worker == second
            assert left.time - lost <= FOUND_OUT_WITHIN_S
            print(f"node cut off: given up after {left.time - lost:.1f} s")
            step = steps_done(run)
            running.wait_until(lambda: steps_done(run) > step + 1, "steps without it")
            cut_off.thaw()
            finished = running.finish()
    assert finished.code == 0, finished.output
    assert weights(run) == weights(expected)
    assert violations(run) == {}
    saved, _, _ = run_state.newest(run / run_folder.CHECKPOINTS)
    assert (saved / run_state.LEARNER_FOLDER / "policy" / "rank_0.pt").stat().st_size > 0
