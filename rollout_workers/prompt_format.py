"""A prompt's text from a template that names columns, such as "Question: {question}\\nAnswer:".

It must not know where rows come from. Invariant: what stands in for a column is a value that the row has, never the
name that Python gives to an empty one or to an object.
"""

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from rollout_workers.rows import Row, column
from services.contracts.errors import UserError

_COLUMN = re.compile(r"(?!\d+(\[|$))[^.\[]+(\[[^\]]+\])*")
"""A column, or what an object in it has under a name."""


def check_format(template: str) -> str:
    """The template. Raises `ValueError` where it is wrong whatever the rows are."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{template!r}: {error}; write a brace of the text itself twice") from error
    for name in names:
        if not _COLUMN.fullmatch(name):
            raise ValueError(
                f"{template!r}: {{{name}}} is no column; write {{column}}, or {{column[name]}} of an object"
            )
    return template


def format_prompt(template: str, row: Row, where: str) -> str:
    """The text of one row. Raises `UserError`, naming `where` and what the row lacks."""
    try:
        return _Columns(where).vformat(template, (), row)
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: data.prompt_format {template!r} does not suit the row: {error!r}") from error


class _Columns(Formatter):
    """What stands between braces, out of the row's columns."""

    def __init__(self, where: str) -> None:
        self._where = where

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # Any: the user's JSON
        return column(kwargs, str(key), self._where)

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # Any: ditto
        value, key = super().get_field(field_name, args, kwargs)
        if value is None or (isinstance(value, Mapping | Sequence) and not isinstance(value, str)):
            raise UserError(
                f"{self._where}, column {key!r}: data.prompt_format writes {{{field_name}}}, which is {value!r:.80} "
                "and no text or number"
            )
        return value, key
