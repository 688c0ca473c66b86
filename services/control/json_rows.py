"""Rows as a JSONL file, written at once.

It must not know what is in a row.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.control.line_file import replace_lines


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:  # Any: JSON
    """Write the file: at any moment either all of the old or the new one is there."""
    replace_lines(path, (json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") for row in rows))
