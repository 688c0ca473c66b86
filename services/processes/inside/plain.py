"""Values as plain data: what a program returns, written as JSON that keeps Python's types apart.

    7 -> 7      (1, 2) -> {"tuple": [1, 2]}      {1: 2} -> {"dict": [[1, 2]]}      an object -> {"object": 3}

It must not know who reads it. Invariant: reading gives values of Python's own plain types and nothing else, whatever is
read: no class, no method and no comparison of the writer comes across.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

Value: TypeAlias = Any  # Any: every Python value may be written, and a type for plain ones would be recursive

COLLECTIONS: dict[str, type[Value]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class NotPlain(Exception):
    """A value that is no plain data."""


def no_object(value: Value) -> int:
    raise NotPlain(f"{type(value).__name__} is no plain data")


def write(value: Value, reference: Callable[[Value], int] = no_object) -> Value:
    """`value` as JSON; `reference` gives the number of an object that is no plain data, or raises."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {"dict": [[write(key, reference), write(item, reference)] for key, item in value.items()]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    for name, kind in COLLECTIONS.items():
        if isinstance(value, kind):
            return {name: [write(item, reference) for item in value]}
    return {"object": reference(value)}


def read(written: Value, resolve: Callable[[int], Value] = no_object) -> Value:
    """The value that was written; `resolve` gives the object of a number.

    Raises:
        NotPlain: this was not written by `write`, or holds an object where none is expected.
    """
    if written is None or isinstance(written, bool | int | float | str):
        return written
    if not isinstance(written, dict) or len(written) != 1:
        raise NotPlain(f"{type(written).__name__} where a written value is expected")
    ((kind, content),) = written.items()
    try:
        if kind == "dict":
            return {read(key, resolve): read(item, resolve) for key, item in content}
        if kind == "complex":
            return complex(*content)
        if kind == "bytes":
            return bytes.fromhex(content)
        if kind == "object":
            return resolve(int(content))
        return COLLECTIONS[kind](read(item, resolve) for item in content)
    except (KeyError, TypeError, ValueError) as error:
        raise NotPlain(f"a {kind!r:.20} that cannot be read") from error
