"""Completions that wait for a judge: rows of a data file, grouped by their prompt and paired.

It must not know how they are judged. Invariants: a pair has two texts that differ; its id depends on its texts alone;
which pairs are drawn depends on the seed and the prompt, so that a job that goes on finds the same ones.
"""

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

from pydantic import Field

from rollout_workers.chat_format import check_encodable
from rollout_workers.rows import Row, column, read_rows
from services.contracts.errors import UserError
from services.contracts.records import Json
from services.contracts.settings import Section

PromptValue: TypeAlias = str | list[Json]


class DraftsConfig(Section):
    """Where completions come from."""

    rows: str
    """A .jsonl, .json or .parquet file, such as a run's samples.jsonl, or a data set's name on the Hugging Face hub."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    prompt_field: str = "prompt"
    """Column with the prompt: a string, or a list of {role, content} turns; rows with one prompt belong together."""
    completion_field: str = "completion"
    """Column with one completion."""
    completions_field: str | None = None
    """Column with a list of completions, in place of completion_field."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many rows."""


class CandidatesConfig(DraftsConfig):
    """Where completions come from, and how many of each prompt's are compared."""

    pairs_per_prompt: int = Field(default=4, ge=1)
    """Most pairs of one prompt, drawn at random by run.seed; n completions make n · (n − 1) / 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A prompt as it stands in the data, and one completion of it."""

    id: str
    prompt: PromptValue
    completion: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A prompt as it stands in the data, and two completions of it."""

    id: str
    prompt: PromptValue
    first: str
    second: str


def load_drafts(config: DraftsConfig) -> list[Draft]:
    """Every completion, each once. Raises `UserError` naming file, row and column of the first fault."""
    drafts: dict[str, Draft] = {}
    rows = read_rows(config.rows, subset=config.subset, split=config.split)[: config.limit]
    for number, row in enumerate(rows):
        where = f"{config.rows}, row {number}"
        prompt = _prompt(row, config, where)
        for completion in _completions(row, config, where):
            draft = Draft(id=_id(prompt, completion), prompt=prompt, completion=completion)
            drafts[draft.id] = draft
    return list(drafts.values())


def load_pairs(config: CandidatesConfig, *, seed: int) -> list[Pair]:
    """Pairs of completions of the same prompt.

    Raises:
        UserError: naming file, row and column of the first fault, or when no prompt has two completions that differ.
    """
    completions: dict[str, list[Draft]] = {}
    for draft in load_drafts(config):
        completions.setdefault(_id(draft.prompt), []).append(draft)
    pairs = [pair for drafts in completions.values() for pair in _draw_pairs(drafts, config.pairs_per_prompt, seed)]
    if not pairs:
        raise UserError(
            f"{config.rows}: none of {len(completions)} prompts has two completions that differ; give more completions "
            "of each prompt"
        )
    return pairs


def shown_prompt(prompt: PromptValue) -> str:
    """The prompt as a judge reads it."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt if isinstance(turn, dict))


def _draw_pairs(drafts: Sequence[Draft], count: int, seed: int) -> Iterator[Pair]:
    pairs = list(itertools.combinations(drafts, 2))
    draws = random.Random(f"{seed}/{drafts[0].id}")
    for first, second in draws.sample(pairs, min(count, len(pairs))):
        yield Pair(
            id=_id(first.prompt, first.completion, second.completion),
            prompt=first.prompt,
            first=first.completion,
            second=second.completion,
        )


def _prompt(row: Row, config: DraftsConfig, where: str) -> PromptValue:
    prompt: PromptValue = column(row, config.prompt_field, where)
    place = f"{where}, column {config.prompt_field!r}"
    if not isinstance(prompt, str) and not (isinstance(prompt, list) and prompt and all(map(_is_turn, prompt))):
        raise UserError(f"{place}: expected a string or a list of {{role, content}} turns")
    check_encodable(shown_prompt(prompt), place)
    return prompt


def _completions(row: Row, config: DraftsConfig, where: str) -> Sequence[str]:
    field = config.completions_field or config.completion_field
    value = column(row, field, where)
    completions = value if config.completions_field else [value]
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        wanted = "a list of strings" if config.completions_field else "a string"
        raise UserError(f"{where}, column {field!r}: expected {wanted}, found {value!r:.80}")
    for text in completions:
        check_encodable(text, f"{where}, column {field!r}")
    return completions


def _is_turn(turn: object) -> bool:
    return isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def _id(*parts: object) -> str:
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
