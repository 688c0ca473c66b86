"""Which parts of a reward apply to a sample, by one field of its reference.

It must not know what a part does. Invariant: a sample that no route is for is a typed failure, never scored by the
parts that happen to apply to all.
"""

from collections.abc import Iterator, Mapping, Sequence

from reward_server.part_config import OTHERWISE
from reward_server.parts import Part, Tally
from services.contracts.records import Failure, FailureCode, Json, RewardSample


class Routing:
    """The routes of `parts`; without a part that says `when`, there is one, for all."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        conditions = [part.when for part in parts if isinstance(part.when, Mapping)]
        self._field = next((field for when in conditions for field in when), None)
        self._values = list(
            dict.fromkeys(_key(value) for when in conditions for values in when.values() for value in values)
        )
        self._has_otherwise = any(part.when == OTHERWISE for part in parts)

    def routes(self) -> Iterator[Sequence[Part]]:
        """The parts of each route that there is."""
        if self._field is None:
            yield self._parts
            return
        for key in self._values:
            yield self._on_route(key)
        if self._has_otherwise:
            yield self._on_route(None)

    def tally(self, sample: RewardSample) -> Tally:
        """A sample with the parts that apply to it; already failed where it has no route."""
        if self._field is None:
            return Tally(sample=sample, parts=self._parts)
        value = sample.reference.get(self._field)
        if _key(value) in self._values:
            return Tally(sample=sample, parts=self._on_route(_key(value)))
        if self._has_otherwise:
            return Tally(sample=sample, parts=self._on_route(None))
        return Tally(sample=sample, parts=(), failures=[self._no_route(value)])

    def _on_route(self, key: tuple[type, Json] | None) -> Sequence[Part]:
        """The parts of the samples with this value; of the samples with no known one for None."""
        return [part for part in self._parts if part.when is None or _is_for(part.when, key)]

    def _no_route(self, value: Json) -> Failure:
        found = f"has no {self._field!r}" if value is None else f"has {self._field!r} {value!r:.60}"
        known = ", ".join(repr(known) for _, known in self._values)
        message = (
            f"the reference {found}, and the routes are for {known}; mend the data, or add a part `when: otherwise`"
        )
        return Failure(code=FailureCode.INVALID_SAMPLE, message=message)


def _is_for(when: Mapping[str, Sequence[Json]] | str, key: tuple[type, Json] | None) -> bool:
    if isinstance(when, Mapping):
        return key in [_key(value) for values in when.values() for value in values]
    return key is None


def _key(value: Json) -> tuple[type, Json]:
    """What tells one value from another: unlike `==`, 1 from True."""
    return type(value), value
