"""The server's side of the sandbox: hands programs to the launcher and reads what became of them.

It must not know what a program is worth. Invariants: what a run gives back is how it ended, as its supervisor saw it,
and bytes, at most `output_bytes`; a run that is cancelled, or whose time is up, leaves no process behind; the sandbox
itself being broken raises, and is never the program's fault.
"""

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator

from services.contracts.errors import UserError
from services.contracts.records import Json
from services.contracts.settings import Section
from services.processes.inside.jail import Limits
from services.processes.lifetime import kill

REPORT_GRACE_S = 5.0
MAX_REPORT_BYTES = 4096
LAUNCH = "import sys; sys.path.append(sys.argv[1]); from inside.launcher import main; sys.path.remove(sys.argv[1]); "
LAUNCH += "main(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])"
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "LC_ALL": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",  # Each thread would reserve address space for an arena of its own.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
ADVICE = (
    "The sandbox needs Linux 5.12 or newer on x86_64 or aarch64, and the right to make namespaces: for a user who is "
    "not root, user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 (Debian) and "
    "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); in a container, a seccomp profile that permits unshare, "
    "mount and pivot_root (docs/verifiers.md has the pod's securityContext)"
)


class SandboxLimits(Section):
    """What each program in the sandbox may use."""

    cpu_s: int = Field(default=5, ge=1)
    """Computing time of one run of a program, in seconds."""
    memory_bytes: int = Field(default=512 << 20, ge=64 << 20)
    """Address space of a program, in bytes."""
    file_bytes: int = Field(default=16 << 20, ge=1 << 16)
    """Size of a file, and of all that lies in the program's /tmp, in bytes."""
    output_bytes: int = Field(default=1 << 20, ge=1024)
    """Most of a program's output that is looked at, in bytes; more is worth nothing."""
    python_path: tuple[Path, ...] = ()
    """Folders with packages that programs may import beside the standard library; they can read all that is there."""

    @field_validator("python_path")
    @classmethod
    def _are_folders(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(f"{folder} is no folder")
        return tuple(folder.resolve() for folder in folders)


class SandboxBroken(Exception):
    """The sandbox could not do its work; says nothing about the program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a program's run ended.

    Attributes:
        output: what it wrote; None where that was more than `output_bytes`.
        exit_code: its own, or minus the number of the signal that ended it.
        timed_out: whether it was killed when its time (not its computing time) was up.
        cpu_s: computing time that it used, in seconds.
        wall_s: time that passed from its start to its end, in seconds.
    """

    output: bytes | None
    exit_code: int
    timed_out: bool
    cpu_s: float
    wall_s: float


class Sandbox:
    """Runs programs, each in a jail of its own; any number at the same time.

    `start` before the first run, `close` after the last; all on one event loop.
    """

    def __init__(self, limits: SandboxLimits) -> None:
        self._limits = limits
        self._process: Process | None = None
        self._channel: socket.socket | None = None
        self._launching = asyncio.Lock()

    async def start(self) -> None:
        """Start the launcher, and try the sandbox out.

        Raises:
            UserError: it cannot be built here; the text says what is missing.
        """
        try:
            ended = await self.run_script("print(6 * 7)", "", wall_s=30.0)
        except (SandboxBroken, OSError) as error:
            await self.close()
            raise UserError(f"programs cannot be run safely here: {error}. {ADVICE}") from error
        if ended.output != b"42\n":
            await self.close()
            raise UserError(
                f"print(6 * 7) ended in the sandbox with {ended}; raise limits.memory_bytes or limits.cpu_s"
            )

    async def close(self) -> None:
        """End the launcher, and with it whatever still runs."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            await kill(self._process)

    async def run_script(self, program: str, standard_input: str, *, wall_s: float) -> Ended:
        """Run a program from standard input to standard output."""
        with ExitStack() as files:
            given = _file(files, standard_input.encode(errors="replace"))
            run = await self._begin("script", {"program": program}, [given], wall_s)
        return await run.ended()

    async def run_calls(self, program: str, function: str, calls: Json, *, wall_s: float) -> Ended:
        """Call a function of a program; the output holds a line for each call."""
        order = {"program": program, "function": function, "calls": calls}
        run = await self._begin("calls", order, [], wall_s)
        return await run.ended()

    async def run_tests(self, program: str, tests: Sequence[str], *, wall_s: float) -> Ended:
        """Run tests, in a jail of their own, on a program in another; the output is that of the tests."""
        with ExitStack() as runs:
            with ExitStack() as files:  # Closed before the wait, so that each side sees the other's end.
                asked, asks = _pipe(files)
                told, tells = _pipe(files)
                answering = await self._begin("answers", {"program": program}, [asked, tells], wall_s)
                runs.callback(answering.close)
                testing = await self._begin("tests", {"tests": list(tests)}, [asks, told], wall_s)
            return await testing.ended()

    async def _begin(self, role: str, order: Mapping[str, Json], given: Sequence[int], wall_s: float) -> "Run":
        """Hand a job to the launcher. Raises SandboxBroken."""
        async with self._launching:
            if self._channel is None or _is_left(self._channel):
                await self._launch()
        assert self._channel is not None
        job = {"role": role, "limits": [getattr(self._limits, name) for name in Limits._fields], "wall_s": wall_s}
        with ExitStack() as files, ExitStack() as kept:
            report, told = _pipe(files, kept)
            output = _file(kept, b"")
            orders = _file(files, json.dumps(order).encode())
            outputs = [output] if role != "answers" else []
            try:
                socket.send_fds(self._channel, [json.dumps(job).encode()], [told, orders, *outputs, *given])
            except OSError as error:
                raise SandboxBroken(f"the sandbox's launcher takes no job: {error}") from error
            return Run(report, output, self._limits.output_bytes, wall_s, kept.pop_all())

    async def _launch(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        with theirs:
            arguments = [Path(__file__).parent, theirs.fileno(), os.getpid(), *self._limits.python_path]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-s", "-P", "-S", "-c", LAUNCH, *map(str, arguments),
                stdin=DEVNULL, stdout=DEVNULL, env=ENVIRONMENT, cwd="/", pass_fds=[theirs.fileno()],
            )  # fmt: skip


class Run:
    """A program that runs: wait until it has `ended`, or `close` to end it."""

    def __init__(self, report: int, output: int, output_bytes: int, wall_s: float, files: ExitStack) -> None:
        self._report = report
        self._output = output
        self._output_bytes = output_bytes
        self._wall_s = wall_s
        self._files = files

    def close(self) -> None:
        """End it if it runs still: its supervisor sees that nobody waits."""
        self._files.close()

    async def ended(self) -> Ended:
        """How it ended. Raises SandboxBroken."""
        try:
            async with asyncio.timeout(self._wall_s + REPORT_GRACE_S):
                lines = [json.loads(line) for line in (await self._read_report()).splitlines()]
            if not lines or "broken" in lines[0]:
                raise SandboxBroken(lines[0]["broken"] if lines else "its supervisor ended without a report")
            output = os.pread(self._output, self._output_bytes + 1, 0)
            return Ended(output=output if len(output) <= self._output_bytes else None, **lines[0])
        except TimeoutError as error:
            raise SandboxBroken(f"no report {REPORT_GRACE_S:g} s after the program's time was up") from error
        finally:
            self.close()

    async def _read_report(self) -> bytes:
        """Everything that is written until the supervisor closes its end."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        report = bytearray()

        def read() -> None:
            part = os.read(self._report, MAX_REPORT_BYTES)
            report.extend(part)
            if not part and not done.done():
                done.set_result(None)

        loop.add_reader(self._report, read)
        try:
            await done
        finally:
            loop.remove_reader(self._report)
        return bytes(report)


def _is_left(channel: socket.socket) -> bool:
    """Whether the launcher at the other end, which never says anything, has ended."""
    try:
        return not channel.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _file(files: ExitStack, content: bytes) -> int:
    """A file in memory with this content, read from its start; closed with `files`."""
    file = os.memfd_create("sandbox")
    files.callback(os.close, file)
    os.write(file, content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _pipe(write_end: ExitStack, read_end: ExitStack | None = None) -> tuple[int, int]:
    """The read end and the write end of a pipe, each closed with a stack."""
    reads, writes = os.pipe()
    (read_end or write_end).callback(os.close, reads)
    write_end.callback(os.close, writes)
    return reads, writes
