"""Output that outlives its reader: where a pipe or a terminal was closed, what a command prints is dropped.

It must not know what is printed. Invariant: no command fails for want of a reader; what a run found lies in its folder.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import IO, Any


class LastingStream:
    """A text stream that goes silent at the first write that fails.

    Attributes:
        is_silent: whether it did.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.is_silent = False

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._go_silent()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._go_silent()

    def __getattr__(self, name: str) -> Any:  # Any: whatever the stream has
        return getattr(self._stream, name)

    def _go_silent(self) -> None:
        """What is still buffered goes nowhere as well, or the interpreter would trip over it at its end."""
        self.is_silent = True
        with suppress(OSError), open(os.devnull, "w") as nowhere:  # noqa: PTH123  # a stream without a descriptor
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def lasting_output() -> Iterator[None]:
    """While entered, standard output and standard error last."""
    out, err = LastingStream(sys.stdout), LastingStream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()


def has_reader() -> bool:
    """Whether somebody may still read standard output."""
    return not getattr(sys.stdout, "is_silent", False)
