"""A full disk, a reward service that is away, a worker that crawls, on real parts: the run says so and goes on."""

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median

from services.control import run_folder, run_state
from services.control.ledger_events import Accepted, Checkpoint, Dispatched, RunEnded, Trained
from tests.end_to_end.command import json_lines, started, trireme, write_config
from tests.end_to_end.faults import came, events, ranks, reward_server, steps_done, violations, workers
from tests.end_to_end.tiny_run import long_run_sections

FULL_AT_BYTES = 200_000
"""More than any log of a rank, less than the weights in a checkpoint."""
OUTAGE_S = 10.0
RESUMES_WITHIN_S = 5.0


def test_a_full_disk_costs_single_checkpoints_and_then_ends_the_run_with_the_last_one_whole(
    task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train = {"max_staleness": 1, "checkpoint_every": 2, "max_failed_checkpoints": 2}
    config = write_config(tmp_path / "run.yaml", **long_run_sections(task, train=train))
    with started("train", config, cwd=tmp_path) as running:
        came(running, run, Checkpoint, since=0.0)
        for rank in ranks(running):
            resource.prlimit(rank, resource.RLIMIT_FSIZE, (FULL_AT_BYTES, FULL_AT_BYTES))
        finished = running.finish()
    assert finished.code == 1, finished.output
    assert finished.output.count("going on without a checkpoint") == 1
    assert "free some space and use --resume" in finished.output
    assert [event.error for event in events(run, RunEnded)] == ["CheckpointError"]
    saved, state, faults = run_state.newest(run / run_folder.CHECKPOINTS)
    assert faults == []
    assert state.step == events(run, Checkpoint)[-1].step
    assert [path for path in saved.parent.iterdir() if path.name.endswith(".partial")] == []
    resumed = trireme("train", config, "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.output
    assert violations(run) == {}


def test_a_run_waits_for_its_reward_service_and_goes_on_soon_after_its_return(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sections = long_run_sections(task, train={"max_staleness": 1, "num_steps": 30})
    with reward_server(tmp_path) as (server, address):
        sections["reward"] = {"addresses": [address]}
        config = write_config(tmp_path / "run.yaml", **sections)
        with started("train", config, cwd=tmp_path) as running:
            running.wait_until(lambda: steps_done(run) >= 3, "three steps")
            server.kill()
            server.wait(timeout=10)
            away = time.monotonic()
            running.wait_until(lambda: time.monotonic() - away > OUTAGE_S, "the outage to last")
            with reward_server(tmp_path, port=int(address.rsplit(":", 1)[1])):
                back = time.time()
                assert came(running, run, Accepted, since=back).time - back <= RESUMES_WITHIN_S
                finished = running.finish()
    assert finished.code == 0, finished.output
    assert f"scoring waits for the reward service ({address})" in finished.output
    assert violations(run) == {}


@contextmanager
def slowed_down(pid: int, *, works_s: float, rests_s: float) -> Iterator[None]:
    """Let a process work for only a part of the time."""
    ended = threading.Event()

    def alternate() -> None:
        while not ended.is_set():
            os.kill(pid, signal.SIGSTOP)
            ended.wait(rests_s)
            os.kill(pid, signal.SIGCONT)
            ended.wait(works_s)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_worker_that_crawls_is_given_less_and_the_bound_holds(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sections = long_run_sections(
        task, rollout={"num_workers": 2}, train={"max_staleness": 1, "num_steps": 30, "prompts_per_step": 8}
    )
    with started("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path) as running:
        running.wait_until(lambda: steps_done(run) >= 3, "three steps")
        slow = max(workers(run))
        since = time.time()
        with slowed_down(workers(run)[slow], works_s=0.01, rests_s=0.09):
            running.wait_until(lambda: steps_done(run) >= 22, "further steps")
        given = [event.worker == slow for event in events(run, Dispatched, since=since)]
        finished = running.finish()
    assert finished.code == 0, finished.output
    assert sum(given) < 0.2 * len(given)
    rows = json_lines(run / "metrics.jsonl")
    seconds = [float(str(row["seconds/step"])) for row in rows]
    print(f"longest steps, in medians: {', '.join(f'{s / median(seconds):.1f}' for s in sorted(seconds)[:-6:-1])}")
    assert violations(run) == {}
    for row in rows:
        stale = [event.staleness for event in events(run, Trained) if event.step == row["step"]]
        assert max(stale) <= 1
        assert (row["staleness/mean"], row["staleness/max"]) == (fmean(stale), max(stale))
        assert row.get("staleness/share_1", 0.0) == stale.count(1) / len(stale)
