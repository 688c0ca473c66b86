"""Holds what came out of the sandbox against what is right: here, where no program can reach.

It must not run anything. Invariants: whatever the bytes are, the answer is one verdict for each test; only the tests
themselves being at fault raises; a value is compared as plain data, never by a method of its own.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field, TypeAdapter, field_validator, model_validator

from services.contracts.records import Json
from services.contracts.settings import Section
from services.processes.inside import plain


class Case(Section):
    """A program that reads and prints."""

    stdin: str = ""
    """What it is given to read."""
    stdout: str
    """What it has to print, line by line; the width of white space does not matter."""


class Call(Section):
    """A call of a function of the program."""

    args: tuple[Any, ...] = ()  # Any: JSON
    """Its positional arguments."""
    kwargs: dict[str, Any] = Field(default_factory=dict)  # Any: JSON
    """Its keyword arguments."""
    expected: Any  # Any: JSON
    """What it has to return; a tuple counts as the list that JSON has for it."""


class ProgramTests(Section):
    """The tests of one prompt's programs, from its reference."""

    cases: tuple[Case, ...] = ()
    """Runs of the whole program; a list, or its JSON text."""
    function: str | None = None
    """The function that `calls` call, as an expression: `add`, `Solution().add`."""
    calls: tuple[Call, ...] = ()
    """Calls of one function; a list, or its JSON text (which keeps 2.0 apart from 2)."""
    tests: tuple[str, ...] = ()
    """Code that uses the program's functions and raises where they are wrong: a list, or one text."""
    preamble: str = ""
    """Code that is put before the program."""

    @field_validator("cases", "calls", mode="before")
    @classmethod
    def _read(cls, given: object) -> object:
        return json.loads(given) if isinstance(given, str) else given

    @field_validator("tests", mode="before")
    @classmethod
    def _as_list(cls, given: object) -> object:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _something_to_test(self) -> "ProgramTests":
        if bool(self.calls) != (self.function is not None):
            raise ValueError("calls and function need each other")
        if not len(self):
            raise ValueError("there is nothing to test a program by: give cases, calls with function, or tests")
        return self

    def __len__(self) -> int:
        return len(self.cases) + len(self.calls) + len(self.tests)


class FaultyTests(Exception):
    """The tests cannot be run, whatever the program is."""


def verdicts_of_calls(output: bytes | None, calls: Sequence[Call], tolerance: float) -> list[bool]:
    """For each call, whether the line that answers it holds what is expected."""
    lines = (output or b"").split(b"\n")[: len(calls)]
    verdicts = [_answers(line, call.expected, tolerance) for line, call in zip(lines, calls, strict=False)]
    return verdicts + [False] * (len(calls) - len(verdicts))


def verdicts_of_tests(output: bytes | None, num_tests: int) -> list[bool]:
    """What the jail of the tests says of each; all failed where it came to no end.

    Raises:
        FaultyTests: it says that they are no tests.
    """
    try:
        verdict = json.loads(output or b"")
    except ValueError:
        return [False] * num_tests
    if "faulty" in verdict:
        raise FaultyTests(str(verdict["faulty"]))
    return PASSED.validate_python(verdict["passed"])


def same_output(output: bytes | None, expected: str, tolerance: float) -> bool:
    """Whether a program printed this, line by line, but for the width of white space and fractions within tolerance."""
    if output is None:
        return False
    found, wanted = _lines(output.decode(errors="replace")), _lines(expected)
    return len(found) == len(wanted) and all(
        one == other or _same_words(one.split(), other.split(), tolerance)
        for one, other in zip(found, wanted, strict=True)
    )


def same_value(found: plain.Value, expected: Json, tolerance: float) -> bool:
    """Whether a plain value is what is expected, in JSON's terms."""
    if isinstance(found, bool) or isinstance(expected, bool) or expected is None:
        return found is expected
    if isinstance(found, int | float) and isinstance(expected, int | float):
        return _same_number(found, expected, tolerance)
    if isinstance(found, list | tuple) and isinstance(expected, list):
        return len(found) == len(expected) and all(
            same_value(one, other, tolerance) for one, other in zip(found, expected, strict=True)
        )
    if isinstance(found, set | frozenset) and isinstance(expected, list):
        return len(found) == len(expected) and all(any(same_value(a, b, tolerance) for a in found) for b in expected)
    if isinstance(found, dict) and isinstance(expected, dict):
        named = {str(key): value for key, value in found.items()}
        return named.keys() == expected.keys() and all(
            same_value(named[key], expected[key], tolerance) for key in named
        )
    return isinstance(found, str) and found == expected


PASSED = TypeAdapter(list[bool])


def _answers(line: bytes, expected: Json, tolerance: float) -> bool:
    try:
        found = plain.read(json.loads(line)["returned"])
    except (ValueError, TypeError, KeyError, RecursionError, plain.NotPlain):  # The program wrote what it liked.
        return False
    return same_value(found, expected, tolerance)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_words(found: Sequence[str], expected: Sequence[str], tolerance: float) -> bool:
    return len(found) == len(expected) and all(
        one == other or ("." in other and _same_number(_number(one), _number(other), tolerance))
        for one, other in zip(found, expected, strict=True)
    )


def _number(word: str) -> float:
    """The number that a word is; NaN, which equals nothing, where it is none."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def _same_number(found: float, expected: float, tolerance: float) -> bool:
    if isinstance(found, int) and isinstance(expected, int):
        return found == expected
    try:
        return math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # An integer beyond every float.
        return False
