"""Which parts of a reward apply to a sample, by one field of its reference.

It must not know what a part does. Invariant: a sample that no route is for is a typed failure, never scored by the
parts that happen to apply to all.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from reward_server.part_config import OTHERWISE
from reward_server.parts import Part, Tally
from services.contracts.records import Failure, FailureCode, Json, RewardSample

Key: TypeAlias = tuple[type, Json]
"""A value of the field; with its type, because 1 and True are equal."""


class Routing:
    """The routes of `parts`; without a part that says `when`, there is one, for all."""

    def __init__(self, parts: Sequence[Part]) -> None:
        conditions = [part.when for part in parts if isinstance(part.when, Mapping)]
        self._field = next((field for when in conditions for field in when), None)
        keys: list[Key | None] = [_key(value) for when in conditions for values in when.values() for value in values]
        if self._field is None or any(part.when == OTHERWISE for part in parts):
            keys.append(None)  # What has none of the values.
        self._routes = {key: tuple(part for part in parts if _is_for(part.when, key)) for key in keys}

    def routes(self) -> Collection[tuple[Part, ...]]:
        """The parts of each route that there is."""
        return self._routes.values()

    def tally(self, sample: RewardSample) -> Tally:
        """A sample with the parts that apply to it; already failed where it has no route."""
        value = None if self._field is None else sample.reference.get(self._field)
        parts = self._routes.get(_key(value)) or self._routes.get(None)
        if parts is None:
            return Tally(sample=sample, parts=(), failures=[self._no_route(value)])
        return Tally(sample=sample, parts=parts)

    def _no_route(self, value: Json) -> Failure:
        found = f"has no {self._field!r}" if value is None else f"has {self._field!r} {value!r:.60}"
        known = ", ".join(repr(key[1]) for key in self._routes if key)
        message = f"the reference {found}, and routes are for {known}; mend the data, or add a part `when: otherwise`"
        return Failure(code=FailureCode.INVALID_SAMPLE, message=message)


def _is_for(when: Mapping[str, Sequence[Json]] | str | None, key: Key | None) -> bool:
    if isinstance(when, Mapping):
        return key in [_key(value) for values in when.values() for value in values]
    return when is None or key is None


def _key(value: Json) -> Key | None:
    """None where there is no value that a route could be for."""
    return None if value is None or isinstance(value, list | dict) else (type(value), value)
