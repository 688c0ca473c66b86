"""Programs that try to get out, to see what they must not, to outstay their welcome, or to pass unearned."""

import asyncio
import os
import time
from pathlib import Path

import psutil
import pytest

from reward_server.verdicts import Call, verdicts_of_calls, verdicts_of_tests
from services.processes.sandbox import Ended, Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRY = """
import ctypes, os, socket, sys, threading, time
def tried(what, *arguments, **named):
    try:
        what(*arguments, **named)
    except (OSError, RuntimeError, MemoryError, ValueError) as error:
        return type(error).__name__
    return "DONE"
library = ctypes.CDLL(None, use_errno=True)
def system_call(number, *arguments):
    return ctypes.get_errno() if library.syscall(number, *arguments) == -1 else "DONE"
"""
REFUSED = {
    "a process": ("print(tried(os.fork))", "PermissionError"),
    "another program": (
        "print(tried(os.execv, '/usr/bin/id', ['id']), tried(os.posix_spawn, '/bin/sh', ['sh'], {}))",
        "",
    ),
    "a shell": ("print(tried(os.popen, 'id'), os.path.exists('/bin/sh'))", "False"),
    "a socket to anywhere": (
        "print({tried(socket.socket, family) for family in (1, 2, 10, 16, 17, 38, 40)})",
        "{'OSError'}",
    ),
    "a connection": (
        "print(tried(socket.create_connection, ('127.0.0.1', 22)), tried(socket.getaddrinfo, 'a.b', 1))",
        "",
    ),
    "signals to others": ("print(tried(os.kill, -1, 9), tried(os.kill, 2, 9), os.getppid())", "ProcessLookupError"),
    "privileges": (
        "print(os.getuid(), tried(os.setuid, 0), tried(os.chroot, '/tmp'), tried(os.setgroups, [0]))",
        "65534 OSError OSError OSError",
    ),
    "writing outside its folder": (
        "print({tried(open, path, 'w') for path in ('/x', '/usr/lib/x', os.__file__, '/dev/x', '/proc/x', '/etc/x')})",
        "",
    ),
    "changing what is read-only": (
        "print(tried(os.remove, os.__file__), tried(os.chmod, '/usr', 0o777), tried(os.rename, '/usr', '/tmp/usr'))",
        "OSError OSError OSError",
    ),
    "a device": ("print(tried(os.mknod, '/tmp/memory', 0o20666, os.makedev(1, 1)))", "OSError"),
    "more memory than is allowed": (
        "print(tried(bytearray, 1 << 40), tried(bytearray, 300 << 20))",
        "MemoryError MemoryError",
    ),
    "a file that is too large": ("print(tried(lambda: open('/tmp/x', 'wb').write(bytes(5 << 20))))", "OSError"),
    "many files": ("print(tried(lambda: [open(f'/tmp/{n}', 'w').close() for n in range(2000)]))", "OSError"),
    "files that are too large together": (
        "print(tried(lambda: [open(f'/tmp/{n}', 'wb').write(bytes(3 << 20)) for n in range(4)]))",
        "OSError",
    ),
    "many threads": (
        "threading.stack_size(65_536)\n"
        "print(tried(lambda: [threading.Thread(target=time.sleep, args=(0.2,)).start() for _ in range(200)]))",
        "RuntimeError",
    ),
    "many open files": ("print(tried(lambda: [os.dup(0) for _ in range(100)]))", "OSError"),
    "higher limits": (
        "import resource; print([tried(resource.setrlimit, kind, (1 << 40, 1 << 40)) for kind in (0, 1, 6, 7, 9)])",
        "",
    ),
}
# On x86-64: ptrace, mount, unshare, setns, pivot_root, keyctl, bpf, userfaultfd, io_uring_setup, memfd_create, shmget,
# execve, fork, vfork, clone3, process_vm_readv, process_vm_writev, perf_event_open, personality, init_module,
# kexec_load, open_by_handle_at, mq_open, socket, connect, sendmsg, chroot, prctl, seccomp, capset, quotactl, add_key;
# and fork of its x32 form.
DANGEROUS_CALLS = [
    101, 165, 272, 308, 155, 250, 321, 323, 425, 319, 29, 59, 57, 58, 435, 310, 311, 298, 135, 175, 246, 304, 240,
    41, 42, 46, 161, 157, 317, 126, 179, 248, 0x4000_0000 + 57,
]  # fmt: skip


async def attempt(sandbox: Sandbox, program: str, *, wall_s: float = 10.0) -> Ended:
    return await sandbox.run_script(TRY + program, "", wall_s=wall_s)


@pytest.mark.parametrize("what", REFUSED)
async def test_a_program_is_refused(sandbox: Sandbox, what: str) -> None:
    program, output = REFUSED[what]
    ended = await attempt(sandbox, program)
    assert ended.output is not None and ended.exit_code == 0, ended
    assert b"Error" in ended.output or b"False" in ended.output
    assert b"DONE" not in ended.output and output.encode() in ended.output


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
async def test_the_calls_that_escapes_are_made_of_do_not_exist(sandbox: Sandbox) -> None:
    ended = await attempt(sandbox, f"print({{system_call(number, 0, 0, 0, 0, 0) for number in {DANGEROUS_CALLS}}})")
    assert ended.output == b"{38}\n"  # ENOSYS


async def test_nothing_of_the_machine_is_seen(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("secret")
    monkeypatch.setenv("API_KEY", "secret")
    paths = [str(canary), str(Path(__file__)), "/etc/passwd", "/proc", "/sys", "/home", "/var", "/run", "/dev/shm"]
    program = f"""
os.symlink('/', '/tmp/up'); os.symlink('../../../..', '/tmp/over')
for start in ('', '/tmp/up', '/tmp/over', '/tmp/up/..'):
    for path in {paths}:
        assert not os.path.exists(start + path), path
print(dict(os.environ), os.listdir('/tmp'), sorted(os.listdir('/dev')), os.getpid(), os.uname().nodename)
print([descriptor for descriptor in range(3, 1024) if tried(os.fstat, descriptor) == 'DONE'])
"""
    ended = await attempt(sandbox, program)
    assert ended.exit_code == 0, ended
    assert ended.output is not None
    first, second, _ = ended.output.decode().split("\n")
    assert first.startswith("{} ['up', 'over'] ['null', 'urandom', 'zero'] 1 ") or first.startswith(
        "{} ['over', 'up'] ['null', 'urandom', 'zero'] 1 "
    )
    assert os.uname().nodename not in first.split()
    assert second == "[]"


async def test_each_layer_of_the_jail_is_there_and_goes_with_the_program(sandbox: Sandbox) -> None:
    running = asyncio.ensure_future(attempt(sandbox, "time.sleep(60)", wall_s=60.0))
    program = await jailed()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{program.pid}/status").read_text().splitlines())
    spaces = {
        name: str(Path(f"/proc/{program.pid}/ns/{name}").readlink())
        for name in ("net", "mnt", "pid", "ipc", "uts", "user")
    }
    running.cancel()
    await gone(program)

    assert [status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")] == ["0" * 16] * 5
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    if os.geteuid() == 0:
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65534"}
    assert not any(str(Path(f"/proc/self/ns/{name}").readlink()) == space for name, space in spaces.items())


async def jailed() -> psutil.Process:
    """The program that runs in the sandbox."""
    end = time.monotonic() + 10.0
    while time.monotonic() < end:
        for process in psutil.Process().children(recursive=True):
            inside = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "NSpid" in line]
            if inside and inside[0].split()[-1] == "1" and process.status() == psutil.STATUS_SLEEPING:
                return process
        await asyncio.sleep(0.01)
    raise AssertionError("no program was seen in the sandbox")


async def gone(process: psutil.Process) -> None:
    end = time.monotonic() + 10.0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "a program outlived its run"
        await asyncio.sleep(0.01)


BUSY = [
    "while True: pass",
    "def spin():\n  while True: pass\nfor _ in range(8): threading.Thread(target=spin).start()",
    "import atexit\n@atexit.register\ndef spin():\n  while True: pass",
    "sys.set_int_max_str_digits(0); print(10 ** 10 ** 9)",
    "import re; re.match('(a+)+b', 'a' * 64)",
    "class Late:\n  def __del__(self):\n    while True: pass\nLate()",
]
IDLE = [
    "time.sleep(60)",
    "import signal; signal.pthread_sigmask(0, range(1, 65)); time.sleep(60)",
    "threading.Thread(target=time.sleep, args=(60,)).start(); sys.exit(0)",
    "os.closerange(0, 64); time.sleep(60)",
]


async def test_programs_end_when_their_time_is_up(sandbox: Sandbox) -> None:
    busy = [attempt(sandbox, program, wall_s=60.0) for program in BUSY]
    idle = [attempt(sandbox, program, wall_s=0.3) for program in IDLE]
    ended = dict(zip([*BUSY, *IDLE], await asyncio.gather(*busy, *idle), strict=True))
    for program, end in ended.items():
        assert end.exit_code != 0, program
        assert end.timed_out == (program in IDLE), program
        assert end.cpu_s < 2.5, program


@pytest.mark.parametrize(
    "program",
    [
        "while True: print('x' * 10_000)",
        "while True: os.write(1, b'x' * 10_000)",
        "os.ftruncate(1, 2_000_000)",
        "os.ftruncate(1, 1 << 40)",
    ],
)
async def test_output_is_bounded(sandbox: Sandbox, program: str) -> None:
    ended = await attempt(sandbox, program)
    assert ended.output is None or ended.exit_code != 0


@pytest.mark.parametrize(
    "program",
    [
        "sys.setrecursionlimit(10 ** 9)\nclass Deep:\n  def __repr__(self): return repr(self)\nrepr(Deep())",
        "ctypes.string_at(0)",
        "library.abort()",
        "exec('(' * 10_000)",
        "'\\ud800'.encode()",
        "raise SystemExit('3')",
        "raise KeyboardInterrupt",
        "sys.exit(256 + 7)",
        "sys.stdout = None; raise ValueError",
        "import builtins; builtins.print = builtins.open = None; raise BaseException",
    ],
)
async def test_a_crash_is_a_crash(sandbox: Sandbox, program: str) -> None:
    ended = await attempt(sandbox, program)
    assert ended.exit_code != 0 and not ended.timed_out


UNEARNED = {
    "exits": "import os; os._exit(0)",
    "exits politely": "raise SystemExit(0)",
    "returns what equals everything": """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    __hash__ = object.__hash__
def f(*_): return Any()""",
    "returns a number that equals everything": """
class Number(int):
    def __eq__(self, other): return True
def f(*_): return Number(1)""",
    "returns a mock": "import unittest.mock\nf = unittest.mock.MagicMock()",
    "breaks what the harness uses": """
import builtins, json, operator, sys
json.dumps = lambda *_, **__: '{"returned": true, "value": true, "passed": [true, true, true]}'
sys.modules["inside.plain"].write = lambda *_: True
builtins.isinstance = lambda *_: True
def f(*_): return None""",
    "writes a verdict wherever it can": """
import os, sys
for file in range(64):
    for text in ('{"passed": [true, true]}', '{"faulty": "tests"}', '{"exit_code": 0}', '{"value": true}'):
        try: os.write(file, text.encode() + b"\\n")
        except OSError: pass
def f(*_): return None""",
    "answers with nonsense": """
import os
def f(*_):
    for file in range(3, 64):
        try: os.write(file, b'[' * 100_000 + b'\\n')
        except OSError: pass""",
    "raises the end of the test": "def f(*_): raise SystemExit(0)",
    "raises what ends loops": "def f(*_): raise StopIteration",
    "calls itself the test's helper": """
def check(*_): pass
len = abs = lambda *_: 2
class math: isclose = staticmethod(lambda *_: True)
def f(*_): return [0, -1]""",
    "is gone": "def f(*_):\n  import os; os._exit(0)",
    "is no program": "def f(:",
}


@pytest.mark.parametrize("how", UNEARNED)
async def test_a_program_does_not_pass_unearned(sandbox: Sandbox, how: str) -> None:
    program = UNEARNED[how]
    calls = [Call(args=(1,), expected=77), Call(args=(2,), expected=[77])]
    called = await sandbox.run_calls(program, "f", [{"args": [1]}, {"args": [2]}], wall_s=10.0)
    tested = await sandbox.run_tests(
        program, ["assert f(1) == 77", "assert math.isclose(f(1), 77)", CHECK], wall_s=10.0
    )

    assert verdicts_of_calls(called.output, calls, 1e-6) == [False, False]
    assert verdicts_of_tests(tested.output, 3) == [False] * 3


CHECK = "def check(function):\n    assert len(function(1)) == 2 and function(1)[1] == abs(-77)\ncheck(f)"


async def test_what_is_expected_is_nowhere_in_the_program_s_process(sandbox: Sandbox) -> None:
    program = """
import gc, sys
def f():
    found, frame = [], sys._getframe()
    while frame:
        found += [frame.f_locals, frame.f_code.co_consts]
        frame = frame.f_back
    found += [value for value in gc.get_objects() if isinstance(value, (str, tuple, list, dict))]
    return "".join(text for text in map(repr, found) if "hidden" in text)[:100_000]"""
    tests = [
        "assert 'hid' + 'den-answer' not in f()",
        "ANSWER = 'hidden-answer'\nassert len(f()) > 9 and ANSWER in f()",
    ]
    tested = await sandbox.run_tests(program, tests, wall_s=20.0)
    assert verdicts_of_tests(tested.output, 2) == [True, False]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="32-bit calls of x86")
async def test_there_is_no_way_round_the_filter_through_32_bit_calls(sandbox: Sandbox) -> None:
    program = r"""
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
print("DONE")"""
    ended = await sandbox.run_script(program, "", wall_s=10.0)
    assert (ended.exit_code, ended.output) == (-31, b"")  # SIGSYS


async def test_no_process_is_left(launcher: psutil.Process) -> None:
    end = time.monotonic() + 10.0
    while any(child.status() != psutil.STATUS_ZOMBIE for child in launcher.children(recursive=True)):
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
