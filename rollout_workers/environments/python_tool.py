"""Runs the program that the policy wrote last in its turn, in the sandbox, and answers with what it printed.

It must not know tokens or rewards. Invariants: nothing that a policy writes is run outside of the sandbox; an answer
comes whatever the program does, and is as long as it may be at most; only a sandbox that is broken, or cannot be built
here, is no answer.
"""

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import TypeVar

from services.contracts.dialogue import Dialogue
from services.contracts.fences import last_fenced_block
from services.processes.sandbox import Ended, Sandbox, SandboxLimits

Result = TypeVar("Result")

LANGUAGES = ("python", "py", "python3")
_NO_ANSWER_WITHIN_S = 60.0
"""Beyond the program's own time: for the sandbox to be started, and to report."""
# So that the policy reads its own mistakes, which Python would tell the standard error.
_PROGRAM = """
import sys, traceback
try:
    exec(compile({program!r}, "program", "exec"), {{"__name__": "__main__"}})
except Exception as error:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "program"]
    where = f" (line {{frames[-1].lineno}})" if frames else ""
    print("".join(traceback.format_exception_only(error)).rstrip() + where)
    sys.exit(1)
"""


def python(
    dialogue: Dialogue, *, wall_s: float = 5.0, memory_mib: int = 512, longest: int = 2000, require_fence: bool = True
) -> str | None:
    """What the last fenced program in the policy's turn prints; None, which ends the dialogue, where there is none.

    Args:
        wall_s: longest run of a program, in seconds; less than rollout.environment.timeout_s.
        memory_mib: address space of a program, in MiB.
        longest: characters of the answer; of more the middle is left out.
        require_fence: whether a turn without a fenced block is none; otherwise all of it is the program.
    """
    program = last_fenced_block(dialogue.said, languages=LANGUAGES)
    if program is None and require_fence:
        return None
    runner = _runner(SandboxLimits(cpu_s=max(1, round(wall_s)), memory_bytes=memory_mib << 20))
    source = _PROGRAM.format(program=dialogue.said if program is None else program)
    return f"<output>\n{_shortened(_told(runner.run(source, wall_s), wall_s), longest)}\n</output>"


class _Runner:
    """A sandbox on an event loop in a thread of its own: environments are called in threads that come and go."""

    def __init__(self, limits: SandboxLimits) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="python tool", daemon=True).start()
        self._sandbox = Sandbox(limits)
        try:
            self._do(self._sandbox.start(), _NO_ANSWER_WITHIN_S)
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise

    def run(self, program: str, wall_s: float) -> Ended:
        return self._do(self._sandbox.run_script(program, "", wall_s=wall_s), wall_s + _NO_ANSWER_WITHIN_S)

    def _do(self, work: Coroutine[None, None, Result], timeout_s: float) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)


_lock = threading.Lock()


def _runner(limits: SandboxLimits) -> _Runner:
    with _lock:  # Of several first calls one starts it.
        return _started(limits)


@cache
def _started(limits: SandboxLimits) -> _Runner:
    return _Runner(limits)


def _told(ended: Ended, wall_s: float) -> str:
    if ended.timed_out:
        return f"error: the program was not done after {wall_s:g} s"
    if ended.output is None:
        return "error: the program printed too much"
    text = ended.output.decode(errors="replace").rstrip()
    return f"{text}\nerror: signal {-ended.exit_code} ended the program".lstrip() if ended.exit_code < 0 else text


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[len(text) - half :]}"
