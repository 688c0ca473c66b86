"""The rows of a data file or hub data set, as they are.

It must not know what the columns mean. Invariant: a fault is named by file and row, and nothing is skipped silently.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.contracts.errors import UserError

Row = Mapping[str, Any]  # Any: rows are JSON of the user's own shape


def read_rows(source: str, *, subset: str | None = None, split: str = "train") -> Sequence[Row]:
    """The rows of a JSONL, JSON or Parquet file, or of a data set on the Hugging Face hub; blank lines are no rows.

    Args:
        source: a file, by its ending, or else a hub name.
        subset: configuration of a hub data set.
        split: split of a hub data set.

    Raises:
        UserError: when there is no such file or data set, a row is not an object, or nothing is in it.
    """
    suffix = Path(source).suffix
    if suffix not in _READERS:
        rows = _read_hub(source, subset, split)
    elif Path(source).is_file():
        rows = _READERS[suffix](Path(source))
    else:
        raise UserError(f"data file {source!r} does not exist")
    if not rows:
        raise UserError(f"{source}: the data set is empty")
    return rows


def column(row: Row, field: str, where: str) -> Any:  # Any: the user's JSON
    """A column's value. Raises `UserError` where the row has none."""
    if row.get(field) is None:
        raise UserError(f"{where}: no column {field!r}; the row has {sorted(row)}")
    return row[field]


def _read_json_lines(path: Path) -> list[Row]:
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    return [_parse_row(line, f"{path}, row {number}") for number, line in enumerate(lines)]


def _parse_row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); each line is one object") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with named columns, found {type(row).__name__}")
    return row


def _read_json(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of objects; one object a line goes into a .jsonl file")
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # Damaged pages, and text that is not UTF-8.
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error


def _read_hub(source: str, subset: str | None, split: str) -> list[Row]:
    import datasets

    try:
        return list(datasets.load_dataset(source, subset, split=split))
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise UserError(
            f"data set {source!r} (split {split!r}) could not be loaded from the hub: {error}; "
            f"the name of a file ends in {', '.join(_READERS)}"
        ) from error


_READERS = {".jsonl": _read_json_lines, ".json": _read_json, ".parquet": _read_parquet}
