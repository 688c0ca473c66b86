"""How a run is going, for whoever watches: a live view on a terminal, plain lines anywhere else.

It must not know what a step does or what is written to the run's folder. Invariants: outside a terminal no control
character is printed; on the way out the terminal is left as it was found.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from services.control.catalogue import ACCURACY, REWARD, clock
from services.control.progress_view import Snapshot, panel, plain_line
from services.control.visible_text import visible

_MOST_PLAIN_LINES = 100
"""About how many step lines a long run prints where nothing can be redrawn."""


def open_progress(total_steps: int, *, title: str) -> "Progress":
    """The live view when standard output is a terminal that a person watches, else plain lines."""
    console = Console()
    is_terminal = console.file.isatty() and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return Progress(total_steps, title=title, console=console, live=is_terminal and "CI" not in os.environ)


class Progress:
    """Shows one run while it is entered.

    Args:
        total_steps: steps of the whole run.
        title: what the run is called.
        console: where it is shown.
        live: redraw a panel in place; else print lines.
        now: the time in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        title: str,
        console: Console,
        live: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._title = title
        self._now = now
        self._started = now()
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] = (0, self._started)
        self._metrics: Mapping[str, float] = {}
        self._rewards: list[float] = []
        self._accuracies: list[float] = []
        self._accuracy_step = 0
        self._rendering: _Rendering = _LiveRendering(console, self) if live else _PlainRendering(console)

    def __enter__(self) -> Self:
        self._rendering.start(self.snapshot())
        return self

    def __exit__(self, *_: object) -> None:
        self._rendering.stop(self.snapshot())

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step; a metric that this step does not have keeps its last value."""
        self._metrics = {**self._metrics, **metrics}  # A new mapping, because another thread may be drawing the old.
        self._last = (step, self._now())
        self._first = self._first or self._last
        if REWARD in metrics:
            self._rewards.append(metrics[REWARD])
        if ACCURACY in metrics:
            self._accuracies.append(metrics[ACCURACY])
            self._accuracy_step = step
        self._rendering.show(self.snapshot())

    def message(self, text: str) -> None:
        """Print an event, above the live view where there is one."""
        self._rendering.say(f"{clock(self._now() - self._started):>7}  {visible(text)}")

    def snapshot(self) -> Snapshot:
        """All there is to show now."""
        return Snapshot(
            title=visible(self._title),
            step=self._last[0],
            total_steps=self._total_steps,
            metrics=self._metrics,
            rewards=tuple(self._rewards),
            accuracies=tuple(self._accuracies),
            accuracy_step=self._accuracy_step,
            elapsed_s=self._now() - self._started,
            left_s=self._left_s(),
        )

    def _left_s(self) -> float | None:
        """Time left at the pace from the first step seen to the last, which leaves out the start-up."""
        if self._first is None or self._first[0] == self._last[0]:
            return None
        (first_step, first_time), (step, last_time) = self._first, self._last
        pace = (last_time - first_time) / (step - first_step)
        return max(0.0, pace * (self._total_steps - step) - (self._now() - last_time))


class _Rendering(Protocol):
    def start(self, snapshot: Snapshot) -> None: ...

    def show(self, snapshot: Snapshot) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self, snapshot: Snapshot) -> None: ...


class _LiveRendering:
    """A panel that is redrawn several times a second, so that the clock in it goes."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._live = Live(
            console=console,
            get_renderable=lambda: panel(progress.snapshot()),
            refresh_per_second=4,
        )

    def start(self, snapshot: Snapshot) -> None:
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        """Nothing to do: the next redraw shows it."""

    def say(self, text: str) -> None:
        self._live.console.print(Text(text))

    def stop(self, snapshot: Snapshot) -> None:
        self._live.stop()


class _PlainRendering:
    """A line for every so many steps, and for each step that was evaluated."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._first = True
        self._accuracy_step = 0

    def start(self, snapshot: Snapshot) -> None:
        self._print(f"{snapshot.title}: {snapshot.total_steps} steps")

    def show(self, snapshot: Snapshot) -> None:
        every = max(1, snapshot.total_steps // _MOST_PLAIN_LINES)
        is_evaluated = snapshot.accuracy_step != self._accuracy_step
        is_due = snapshot.step % every == 0 or snapshot.step == snapshot.total_steps
        if is_due or is_evaluated or self._first:
            self._print(plain_line(snapshot, is_evaluated=is_evaluated))
        self._first = False
        self._accuracy_step = snapshot.accuracy_step

    def say(self, text: str) -> None:
        self._print(text)

    def stop(self, snapshot: Snapshot) -> None:
        self._print(f"{snapshot.title}: {snapshot.step} of {snapshot.total_steps} steps in {clock(snapshot.elapsed_s)}")

    def _print(self, line: str) -> None:
        encoding = self._console.encoding
        self._console.file.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        self._console.file.flush()
