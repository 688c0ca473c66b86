"""1 when the completion is JSON that a schema accepts; 0 when it is not.

Validated by jsonschema-rs, whose regular expressions take linear time and which fetches nothing (`offline`), so that
neither a policy nor a schema can make it hang or look around. It must not know how a completion was sampled. Invariant:
what a completion does wrong is worth 0; a schema that is none, or refers elsewhere, is a `Failure`.
"""

import functools
import json
from typing import Any, NoReturn, Protocol, Self, cast

from pydantic import model_validator

from reward_server.function import RewardFunction, RewardOptions, Score
from services.contracts.fences import last_fenced_block
from services.contracts.records import Failure, FailureCode, Json, RewardSample


class JsonSchema(RewardOptions):
    """Validates the completion against a JSON schema."""

    fixed_schema: dict[str, Any] | None = None  # Any: a JSON schema, checked by the library that reads it
    """The schema of every sample; where it is not given each sample's reference holds its own."""
    reference_field: str = "schema"
    """Field of the reference that holds the schema: an object, or its text."""
    require_fence: bool = False
    """Count JSON in a fenced block only (the last); where not set, a completion without a block counts as a whole."""
    max_characters: int = 200_000
    """Longer completions are worth 0, in characters."""

    @model_validator(mode="after")
    def _schema_is_one(self) -> Self:
        if self.fixed_schema is not None:
            validator_of(json.dumps(self.fixed_schema))
        return self

    def reward(self) -> RewardFunction:
        return RewardFunction(self.score, name="json_schema", version="2", minimum=0.0, maximum=1.0)

    def score(self, sample: RewardSample) -> Score:
        try:
            validator = validator_of(self._schema_of(sample))
        except ValueError as error:
            return Failure(code=FailureCode.INVALID_SAMPLE, message=f"json_schema: {error}")
        text = last_fenced_block(sample.answer, languages=("json",))
        if text is None:
            text = "" if self.require_fence else sample.answer
        return float(len(text) <= self.max_characters and is_accepted(text, validator))

    def _schema_of(self, sample: RewardSample) -> str:
        schema: Json = self.fixed_schema
        if schema is None:
            schema = sample.reference.get(self.reference_field)
        if not isinstance(schema, str | dict):
            raise ValueError(f"reference.{self.reference_field} is {schema!r:.80}; a JSON schema is needed there")
        return schema if isinstance(schema, str) else json.dumps(schema)


class Validator(Protocol):
    """What is used of the library's validator."""

    def is_valid(self, instance: Any) -> bool: ...  # Any: parsed JSON


@functools.lru_cache(maxsize=1024)
def validator_of(schema: str) -> Validator:
    """The validator of a schema given as text.

    Raises:
        ValueError: it is no JSON schema, or refers to one elsewhere.
    """
    import jsonschema_rs  # Late: most servers need it not.

    try:
        return cast(
            Validator,
            jsonschema_rs.validator_for(json.loads(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions()),
        )
    except (ValueError, RecursionError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        first_line = str(error).partition("\n")[0]
        raise ValueError(f"{schema:.80} is no schema that can be used: {first_line}") from error


def is_accepted(text: str, validator: Validator) -> bool:
    """Whether the text is JSON, strictly, that the validator accepts."""
    try:
        return validator.is_valid(json.loads(text, parse_constant=refuse))
    except (ValueError, RecursionError):  # No JSON; text that is no Unicode; nested beyond what can be read.
        return False


def refuse(constant: str) -> NoReturn:
    """NaN and Infinity, which Python reads and JSON has not."""
    raise ValueError(f"{constant} is not JSON")
