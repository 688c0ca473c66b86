"""A file of JSON lines, each about one step, that grows while a run goes on.

It must not know what the lines say. Invariants: a line is on its way to the disk before `append` returns; steps never
go back, also after a resume; whatever a crash tore is the last line and is left out; there is no file before there is
a line, so that a run which never made a step leaves none.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from services.contracts.errors import UserError
from services.control.line_file import LineFile, replace_lines

Line = Mapping[str, Any]  # Any: whatever JSON holds


class StepLog:
    """Appends lines, each with a `step`.

    Args:
        path: the file; lines already in it stay when they belong to `resume_step` or an earlier step.
        resume_step: steps trained so far; 0 starts the file anew.
    """

    def __init__(self, path: Path, *, resume_step: int) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= resume_step]
        self._path = path
        self._file: LineFile | None = None
        self._last_step = resume_step
        self.last_line: Line | None = kept[-1] if kept else None
        _rewrite(path, kept)

    def append(self, line: Line) -> None:
        """Write one line; numbers that are not finite become null, which every JSON reader takes.

        Raises:
            RunFolderError: the disk refuses it.
        """
        assert line["step"] >= self._last_step, f"step {line['step']} after step {self._last_step}"
        self._last_step = line["step"]
        if self._file is None:
            self._file = LineFile(self._path)
        self._file.append(_encode(line))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:  # Any: whatever JSON holds
    """Every whole line of the file; none when there is no file.

    Raises:
        UserError: a line before the last is damaged.
    """
    lines: list[dict[str, Any]] = []
    encoded = path.read_bytes().split(b"\n") if path.exists() else []
    while encoded and not encoded[-1]:
        encoded.pop()
    for number, text in enumerate(encoded, start=1):
        try:
            lines.append(_decode(text, path, number))
        except UserError:
            if number < len(encoded):
                raise
    return lines


class LineTail:
    """The whole lines of a file that another process writes, each read once.

    A file that was put in the place of the one read before is read from its beginning: so is what a run leaves that is
    resumed from an earlier step.

    Attributes:
        is_anew: whether the last lines read are the first of their file.
    """

    def __init__(self, path: Path) -> None:
        self.is_anew = True
        self._path = path
        self._file: BinaryIO | None = None
        self._num_lines = 0

    def read(self) -> list[dict[str, Any]]:  # Any: whatever JSON holds
        """The lines since the last time; one that is not ended yet is left for the next.

        Raises:
            UserError: a line is damaged.
        """
        self.is_anew = self._follow()
        if self._file is None:
            return []
        begin = self._file.tell()
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.seek(begin + len(whole))
        lines = []
        for text in whole.splitlines():
            self._num_lines += 1
            lines.append(_decode(text, self._path, self._num_lines))
        return lines

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _follow(self) -> bool:
        """Open what stands at the path now, if that is another file; returns whether it is."""
        try:
            found = self._path.open("rb")
        except FileNotFoundError:
            return False
        if self._file is not None and os.path.sameopenfile(found.fileno(), self._file.fileno()):
            found.close()
            return False
        self.close()
        self._file, self._num_lines = found, 0
        return True


def _decode(text: bytes, path: Path, number: int) -> dict[str, Any]:  # Any: whatever JSON holds
    try:
        line: dict[str, Any] = json.loads(text)  # Any: as above
        int(line["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}, line {number} is not a JSON object with a step: {text[:60]!r}; mend or delete that line"
        ) from error
    return line


def _rewrite(path: Path, lines: Sequence[Line]) -> None:
    """Leave these lines in the file, or no file where there is none: at any moment either all of the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not lines:
        path.unlink(missing_ok=True)
        return
    replace_lines(path, map(_encode, lines))


def _encode(line: Line) -> bytes:
    return json.dumps(_finite(line), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
