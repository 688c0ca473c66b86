"""Disturbs one asynchronous run again and again at random, then drains and verifies it: `python -m tests.chaos`.

It must not know how a run recovers. Invariant: a seed gives the same disturbances in the same order; the exit code is 0
only if the run recovered from each within its bound and nothing was lost or trained twice.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from services.control.ledger_events import Checkpoint, LearnerRestarted, RunStarted, Trained
from services.control.verification import verify_run
from tests.end_to_end.command import Running, started, write_config
from tests.end_to_end.faults import (
    RESTORED_WITHIN_S,
    came,
    events,
    operator_of,
    ranks,
    reward_server,
    status,
    workers,
)
from tests.end_to_end.tiny_run import long_run_sections, write_task

MOST_WORKERS = 3
PAUSE_S = (3.0, 8.0)
TWO_AT_ONCE = 0.25
LONGEST_OUTAGE_S = 5.0
LAST = "kill the controller"
"""What comes after others, because nobody is left then who would notice them."""

Seen = Callable[[], bool]
"""Whether the run has noticed what was done to it."""


class Chaos:
    """A run under way in `folder`, with its reward server, and the ways to disturb it."""

    def __init__(self, folder: Path, rng: random.Random, stack: ExitStack) -> None:
        self.run = folder / "run"
        self._folder = folder
        self._rng = rng
        self._stack = stack
        self._server, address = stack.enter_context(reward_server(folder))
        self._port = int(address.rsplit(":", 1)[1])
        self._config = write_config(folder / "run.yaml", **_sections(write_task(folder), address))
        self.command = self._start()

    def kill_a_worker(self) -> Seen:
        return self._lose_a_worker(signal.SIGKILL)

    def freeze_a_worker(self) -> Seen:
        return self._lose_a_worker(signal.SIGSTOP)

    def kill_the_learner(self) -> Seen:
        since = time.time()
        for rank in ranks(self.command):
            _send(rank, signal.SIGKILL)
        return lambda: bool(events(self.run, LearnerRestarted, since=since))

    def restart_the_rewards(self) -> Seen:
        self._server.kill()
        self._server.wait(timeout=10)
        back = time.monotonic() + self._rng.uniform(0, LONGEST_OUTAGE_S)
        self.command.wait_until(lambda: time.monotonic() > back, "the outage to last")
        self._server, _ = self._stack.enter_context(reward_server(self._folder, self._port))
        return lambda: True

    def scale(self) -> Seen:
        with operator_of(self.run) as operator:
            operator.scale(self._rng.randint(1, MOST_WORKERS))
        return lambda: True

    def kill_the_controller(self) -> Seen:
        self.command.kill()
        self.command.finish()
        self.command = self._start("--resume")
        return lambda: True

    def recovers(self) -> None:
        """Wait until as many workers serve as are wanted, and the run trains."""
        self.command.wait_until(self._is_whole, "every worker to serve")
        came(self.command, self.run, Trained, since=time.time())

    def _is_whole(self) -> bool:
        now = status(self.run)
        return [worker.phase for worker in now.workers] == ["serving"] * now.target_workers

    def _start(self, *resume: str) -> Running:
        since = time.time()
        command = self._stack.enter_context(started("train", self._config, *resume, cwd=self._folder))
        came(command, self.run, RunStarted, since=since)
        came(command, self.run, Trained, since=since)
        return command

    def _lose_a_worker(self, number: signal.Signals) -> Seen:
        worker, pid = self._rng.choice(sorted(workers(self.run).items()))
        _send(pid, number)
        return lambda: worker not in workers(self.run)


DISTURBANCES: dict[str, Callable[[Chaos], Seen]] = {
    "kill a worker": Chaos.kill_a_worker,
    "freeze a worker": Chaos.freeze_a_worker,
    "kill the learner": Chaos.kill_the_learner,
    "restart the reward server": Chaos.restart_the_rewards,
    "scale": Chaos.scale,
    LAST: Chaos.kill_the_controller,
}


def main(argv: Sequence[str]) -> int:
    """Disturb, drain, verify, and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Disturbs a run at random.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to disturb (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="what happens in which order (default: %(default)d)")
    arguments = parser.parse_args(argv)
    rng = random.Random(arguments.seed)
    late = 0
    with tempfile.TemporaryDirectory(prefix="trireme-chaos-") as folder, ExitStack() as stack:
        chaos = Chaos(Path(folder), rng, stack)
        came(chaos.command, chaos.run, Checkpoint, since=0.0)
        began = time.monotonic()
        while (at := time.monotonic() - began) < arguments.minutes * 60:
            names = rng.sample(sorted(DISTURBANCES), 2 if rng.random() < TWO_AT_ONCE else 1)
            seconds = disturb(chaos, names)
            late += seconds > RESTORED_WITHIN_S * len(names)
            print(f"{at:6.0f} s  recovered in {seconds:5.1f} s from: {' and '.join(names)}", flush=True)
            calm_until = time.monotonic() + rng.uniform(*PAUSE_S)
            chaos.command.wait_until(lambda until=calm_until: time.monotonic() > until, "the next disturbance")
        return conclude(chaos, late)


def disturb(chaos: Chaos, names: Sequence[str]) -> float:
    """Do all this, and return the seconds until the run is whole again."""
    since = time.time()
    seen = [DISTURBANCES[name](chaos) for name in sorted(names, key=LAST.__eq__)]
    if LAST not in names:
        chaos.command.wait_until(lambda: all(one() for one in seen), "the run to notice what was done to it")
    chaos.recovers()
    return time.time() - since


def conclude(chaos: Chaos, late: int) -> int:
    """Drain the run and verify it; returns the exit code."""
    with operator_of(chaos.run) as operator:
        operator.drain()
    finished = chaos.command.finish()
    report = verify_run(chaos.run)
    print(f"drained with exit code {finished.code}; {len(events(chaos.run, Trained))} groups trained; {report.totals}")
    print(f"too late: {late}; violations: {report.violations or 'none'}")
    if finished.code or late or report.violations:
        print(finished.output)
        return 1
    return 0


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _sections(task: Path, address: str) -> dict[str, dict[str, object]]:
    sections = long_run_sections(
        task,
        rollout={"num_workers": 2, "max_workers": MOST_WORKERS, "max_restarts": 10_000, "max_losses_per_prompt": 1_000},
        train={"max_staleness": 2, "num_steps": 1_000_000, "max_learner_restarts": 10_000},
    )
    return {**sections, "reward": {"addresses": [address]}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
