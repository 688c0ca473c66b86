"""A reward server as a child process of a run.

It must not know what the run does with it. Invariants: the child dies with the process that started it, however that
ends, and does not heed the SIGTERM that whoever ends a whole tree of processes sends to each; a child that does not get
ready within the time is killed, and the error shows what it wrote.
"""

import os
import signal
import subprocess
import sys
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
        command = [sys.executable, "-m", "reward_server", "-", "--parent-pid", str(os.getpid())]
        with log.open("ab") as output:
            # A session of its own: Ctrl-C at the terminal is for the run, which needs rewards to finish its step.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(RewardServerFile(services=tuple(services), server=config).model_dump_json().encode())
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
                raise UserError(
                    f"the reward server of this run did not start (exit code {self._process.returncode}):\n  "
                    + "\n  ".join(written[-LOG_LINES_SHOWN:])
                )
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
