"""How many of the constraints that its prompt names a completion keeps: lengths, words, forms (`constraints.py`).

It must not know any constraint by name. Invariant: a constraint that is none is a `Failure` of its sample, never one
that holds or does not.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from reward_server.constraints import Constraint, constraint
from reward_server.function import RewardFunction, RewardOptions, Score
from reward_server.ifeval import constraints_of
from services.contracts.records import Failure, FailureCode, Json, Reward, RewardSample


class InstructionConstraints(RewardOptions):
    """Checks constraints such as `{kind: words, at_most: 100}` and `{kind: excludes, texts: [very]}`."""

    constraints: tuple[dict[str, Any], ...] = ()  # Any: each kind checks its own
    """Constraints on every sample, beside those of its reference."""
    reference_field: str = "constraints"
    """Field of the reference that holds a list of constraints; a reference in the form of IFEval needs none."""
    value: Literal["share", "all"] = "share"
    """share: how many hold, from 0 to 1; all: 1 when every one holds, else 0."""

    @model_validator(mode="after")
    def _are_constraints(self) -> Self:
        for values in self.constraints:
            constraint(values)
        return self

    def reward(self) -> RewardFunction:
        return RewardFunction(self.score, name="instruction_constraints", version="2", minimum=0.0, maximum=1.0)

    def score(self, sample: RewardSample) -> Score:
        try:
            demanded = parsed(json.dumps([*self.constraints, *self._named(sample.reference)]))
            if not demanded:
                raise ValueError("no constraint is named")
        except ValueError as error:
            message = f"reference.{self.reference_field}: {error}"
            return Failure(code=FailureCode.INVALID_SAMPLE, message=message)
        held = [each.holds(sample.answer) for each in demanded]
        share = sum(held) / len(held)
        return Reward(value=share if self.value == "share" else float(all(held)), components={"share": share})

    def _named(self, reference: Mapping[str, Json]) -> list[Json]:
        """The constraints in a reference, in our form or in IFEval's."""
        if "instruction_id_list" in reference:
            return constraints_of(reference["instruction_id_list"], reference.get("kwargs"))
        named = reference.get(self.reference_field, [] if self.constraints else None)
        if not isinstance(named, list):
            raise ValueError(f"it is {named!r:.80}; a list of constraints is needed there")
        return named


@functools.lru_cache(maxsize=1024)
def parsed(constraints: str) -> tuple[Constraint, ...]:
    """The constraints in a JSON list. Raises ValueError naming what is wrong."""
    return tuple(constraint(values) for values in json.loads(constraints))
