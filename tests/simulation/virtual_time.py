"""An event loop whose clock jumps to the next timer, so that hours pass in milliseconds and always in the same way.

It must not know what runs on it. Invariants: nothing sleeps and nothing but the loop's own callbacks moves time; the
same program gives the same order of events; when nothing is ready and no timer is set, `Deadlock` is raised at once.
"""

import asyncio
import contextvars
import itertools
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

_MOST_NAMED = 20


class Deadlock(Exception):
    """Everything waits and nothing will ever happen; the text names what waits, and where."""


class Killed(BaseException):
    """The process that the loop stands for was killed."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """Runs what needs no files, sockets, threads or signals from the loop.

    Args:
        now: the time to begin with, in seconds.
        most_s: virtual seconds after which whatever still runs counts as stuck.

    Attributes:
        kill_at: virtual time from which on the loop raises `Killed`, and how many more turns it makes then.
        faults: what tasks and callbacks raised that nobody waited for.
    """

    def __init__(self, *, now: float = 0.0, most_s: float = 1e9) -> None:
        super().__init__()
        self._now = now
        self._end = now + most_s
        self._selector = self
        self._serial = itertools.count()
        self.kill_at: tuple[float, int] | None = None
        self.faults: list[str] = []
        self.set_task_factory(self._new_task)
        self.set_exception_handler(self._note_fault)

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        """What the base class calls, once a turn, in order to wait."""
        if self.kill_at is not None and self._now >= self.kill_at[0]:
            at, turns = self.kill_at
            self.kill_at = (at, turns - 1)
            if turns <= 0:
                self.kill_at = None
                raise Killed
        if self.kill_at is not None and timeout is not None:
            timeout = min(timeout, max(0.0, self.kill_at[0] - self._now))
        if timeout is None:
            raise Deadlock(f"nothing is ready and no timer is set at {self._now:.3f} s; these wait:\n{self.waiting()}")
        self._now += timeout
        if self._now > self._end:
            self._end += 1e9
            raise Deadlock(f"no end is in sight at {self._now:.3f} s; these wait:\n{self.waiting()}")
        return []

    def waiting(self) -> str:
        """Each task that has not ended, with the innermost line at which it waits."""
        lines = []
        for task in sorted(asyncio.all_tasks(self), key=hash)[:_MOST_NAMED]:
            frame = task.get_stack()[-1] if task.get_stack() else None
            where = traceback.extract_stack(frame, limit=1)[0] if frame else None
            lines.append(
                f"  {task.get_name()}" + (f" at {where.filename}:{where.lineno}, {where.line}" if where else "")
            )
        return "\n".join(lines)

    def run(self, main: Coroutine[Any, Any, Any], *, on_kill: Callable[[], None] = lambda: None) -> Any:
        """Run to the end. What was cut off is cancelled afterwards; `on_kill` is called before, when it was killed.

        Raises:
            Killed, Deadlock: as the names say, or what `main` raised.
        """
        asyncio.set_event_loop(self)
        try:
            return self.run_until_complete(main)
        except Killed:
            on_kill()
            raise
        finally:
            self._cut_off()
            asyncio.set_event_loop(None)
            self.close()

    def _cut_off(self) -> None:
        self.kill_at = None
        tasks = sorted(asyncio.all_tasks(self), key=hash)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.run_until_complete(self.shutdown_asyncgens())

    def _process_events(self, events: list[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Called from `call_soon_threadsafe`; nothing sleeps, so nothing is to be woken."""

    def _new_task(self, loop: asyncio.AbstractEventLoop, work: Any, context: contextvars.Context | None = None) -> Any:
        return _Task(next(self._serial), work, loop=loop)

    def _note_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error else ""
        self.faults.append(f"{context['message']} {context.get('task') or context.get('future') or ''}\n{trace}")


class _Task(asyncio.Task[Any]):
    """Hashes by its number, so that a set of tasks has the same order each time."""

    def __init__(self, serial: int, *arguments: Any, **named: Any) -> None:
        self._serial = serial
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self._serial
