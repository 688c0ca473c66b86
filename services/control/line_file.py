"""A file of whole lines, which grows by one or is replaced at once: the logs of a run, and what jobs write.

It must not know what a line says. Invariants: a line is with the operating system before `append` returns; a line that
the disk does not take leaves nothing of itself behind, so that the file ends with a whole line at any time.
"""

from collections.abc import Iterable
from pathlib import Path

from services.contracts.errors import RunFolderError


class LineFile:
    """Appends lines.

    Args:
        path: the file, made where there is none.
        keep_bytes: what of it stays; None keeps all.
    """

    def __init__(self, path: Path, *, keep_bytes: int | None = None) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        if keep_bytes is not None:
            self._file.truncate(keep_bytes)

    def append(self, line: bytes) -> None:
        """Write one line; the newline is added here.

        Raises:
            RunFolderError: the disk refuses it.
        """
        whole = self._file.seek(0, 2)
        try:
            left = memoryview(line + b"\n")
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(whole)
            raise RunFolderError(
                f"{self._path} cannot be written: {error.strerror}; free some space there and use --resume"
            ) from error

    def close(self) -> None:
        self._file.close()


def replace_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Have the file hold just these lines: at any moment either all of the old or the new are there."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)
    partial.replace(path)
