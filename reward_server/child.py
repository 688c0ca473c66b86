"""A reward server as a child process of a run, and the look at its rewards before one.

It must not know what the run does with it. Invariants: the child dies with the process that started it, however that
ends, and does not heed the SIGTERM that whoever ends a whole tree of processes sends to each; a child that does not get
ready within the time is killed, and the error shows what it wrote.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from reward_server.config import READY_PREFIX, RewardServerConfig, RewardServerFile
from reward_server.part_config import RewardServiceConfig
from services.contracts.errors import DeadlineExceeded, UserError
from services.processes.lifetime import GONE_WITHIN_S

POLL_S = 0.02
LOG_LINES_SHOWN = 8


class RewardServerChild:
    """A running server; `address` is where it answers.

    Args:
        services: the parts of the reward that is served.
        config: the server's settings; port 0 takes a free one.
        log: file that receives everything the server writes.
        timeout_s: longest wait for it to be ready, in seconds.

    Start it from a thread that lives as long as the run: the kernel ends the child with that thread.

    Raises:
        UserError: the server refused its input; the text holds its words.
        DeadlineExceeded: it was not ready in time.
    """

    def __init__(
        self,
        services: Sequence[RewardServiceConfig],
        config: RewardServerConfig,
        *,
        log: Path,
        timeout_s: float = 60.0,
    ) -> None:
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._drain_s = config.drain_s
        with log.open("ab") as output:
            # A session of its own: Ctrl-C at the terminal is for the run, which needs rewards to finish its step.
            self._process = subprocess.Popen(
                _command(), stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(_file(services, config))
        self.address = self._wait_until_ready(timeout_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> int:
        """Drain the server and return its exit code; it is killed when draining takes too long."""
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(self._drain_s + 5.0)
        except subprocess.TimeoutExpired:
            return self._kill()

    def _wait_until_ready(self, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            is_alive = self.is_alive  # Before reading, so that nothing it wrote is missed.
            written = self._written()
            for line in written:
                if line.startswith(READY_PREFIX):
                    return line.removeprefix(READY_PREFIX)
            if not is_alive:
                raise _refused(self._process.returncode, written)
            time.sleep(POLL_S)
        self._kill()
        raise DeadlineExceeded(
            waited_for="the reward server of this run to be ready", waited_s=timeout_s, advice=f"see {self._log}"
        )

    def _kill(self) -> int:
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # The kernel may hold on to a process that was killed.
            return self._process.wait(GONE_WITHIN_S)
        return -signal.SIGKILL

    def _written(self) -> list[str]:
        """Complete lines of this server in the log."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").split("\n")[:-1]


def check_services(
    services: Sequence[RewardServiceConfig], config: RewardServerConfig, *, timeout_s: float = 60.0
) -> None:
    """Load the rewards as their server would, in a process that ends with that: it runs code of the user's.

    Raises:
        UserError, DeadlineExceeded: as `RewardServerChild` does.
    """
    with tempfile.TemporaryFile() as output:  # Not a pipe, which whatever that code starts could hold open.
        try:
            ended = subprocess.run(
                [*_command(), "--check"],
                input=_file(services, config),
                stdout=output,
                stderr=output,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(
                waited_for="the rewards to load",
                waited_s=timeout_s,
                advice="look for what their files do when they are imported; a run waits no longer either",
            ) from error
        if ended.returncode:
            output.seek(0)
            raise _refused(ended.returncode, output.read().decode(errors="replace").splitlines())


def _command() -> list[str]:
    return [sys.executable, "-m", "reward_server", "-", "--parent-pid", str(os.getpid())]


def _file(services: Sequence[RewardServiceConfig], config: RewardServerConfig) -> bytes:
    return RewardServerFile(services=tuple(services), server=config).model_dump_json().encode()


def _refused(code: int | None, written: Sequence[str]) -> UserError:
    """In the words of the server where it has some, else with the end of what it wrote."""
    last = written[-1] if written else ""
    why = last.removeprefix("error:") if last.startswith("error: ") else "\n  ".join(["", *written[-LOG_LINES_SHOWN:]])
    return UserError(f"the reward server of this run did not start (exit code {code}):{why}")
