"""The completions whose steps are labelled: sampled by the policy, or from a column of the data.

It must not know how they are labelled. Invariants: of one prompt they are always the same, also after a restart; the
tokens of one that was given say exactly its text.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rollout_workers.chat_format import check_encodable
from rollout_workers.prompts import DataConfig
from rollout_workers.rows import read_rows
from services.contracts.errors import UserError
from services.contracts.interfaces import RolloutSource
from services.contracts.records import NOT_SAMPLED, Prompt, Rollout, SampleRequest, Sampling
from services.control.preflight import RunInputs


class Completions(Protocol):
    """Where the completions of a prompt come from."""

    def count(self, prompt: Prompt) -> int:
        """How many there are, known before there are any."""
        ...

    async def of(self, prompt: Prompt) -> Sequence[Rollout]:
        """All of them, in order of their sample index. Raises what sampling raises."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledCompletions:
    """Implements `Completions`: by the policy; the sampling seed makes them the same each time."""

    rollouts: RolloutSource
    sampling: Sampling

    def count(self, prompt: Prompt) -> int:
        return self.sampling.num_samples

    async def of(self, prompt: Prompt) -> Sequence[Rollout]:
        return (await self.rollouts.sample(SampleRequest(prompt=prompt, sampling=self.sampling))).rollouts


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenCompletions:
    """Implements `Completions`: from the data; `by_prompt` has them by the prompt's id."""

    by_prompt: Mapping[str, Sequence[Rollout]]

    def count(self, prompt: Prompt) -> int:
        return len(self.by_prompt[prompt.id])

    async def of(self, prompt: Prompt) -> Sequence[Rollout]:
        return self.by_prompt[prompt.id]


def read_completions(data: DataConfig, inputs: RunInputs, *, field: str, max_tokens: int) -> GivenCompletions:
    """The completions in column `field`: a string, or a list of them, in each row.

    Args:
        max_tokens: of one completion.

    Raises:
        UserError: naming file, row and column of the first that is missing, too long, or not kept by the tokenizer.
    """
    rows = read_rows(data.prompts, subset=data.subset, split=data.split)
    by_prompt = {}
    for prompt in inputs.prompts.prompts:
        where = f"{data.prompts}, row {prompt.row}, column {field!r}"
        texts = _texts(rows[prompt.row].get(field), where)
        encoded = [_encode(text, inputs, max_tokens, where) for text in texts]
        by_prompt[prompt.id] = [
            _to_rollout(prompt, index, token_ids, text)
            for index, (text, token_ids) in enumerate(zip(texts, encoded, strict=True))
        ]
    return GivenCompletions(by_prompt=by_prompt)


def _texts(value: object, where: str) -> Sequence[str]:
    values = value if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str)]
    if len(texts) < len(values):
        raise UserError(f"{where}: expected a completion or a list of completions, found {value!r:.80}")
    for text in texts:
        check_encodable(text, where)
    return texts


def _encode(text: str, inputs: RunInputs, max_tokens: int, where: str) -> list[int]:
    token_ids = [int(token) for token in inputs.tokenizer.encode(text, add_special_tokens=False)]
    if inputs.decode(token_ids) != text:
        raise UserError(
            f"{where}: the tokenizer gives {inputs.decode(token_ids)!r:.80} back for {text!r:.80}; leave out what it "
            "does not know, or set model.tokenizer to one that keeps it"
        )
    if len(token_ids) > max_tokens:
        raise UserError(
            f"{where}: the completion has {len(token_ids)} tokens and rollout.max_completion_tokens is {max_tokens}; "
            "raise it, or leave the completion out"
        )
    return token_ids


def _to_rollout(prompt: Prompt, index: int, token_ids: Sequence[int], text: str) -> Rollout:
    num_tokens = len(prompt.token_ids) + len(token_ids)
    return Rollout(
        prompt_id=prompt.id,
        sample_index=index,
        token_ids=prompt.token_ids + array("i", token_ids),
        logprobs=array("f", [0.0]) * num_tokens,
        policy_versions=array("i", [NOT_SAMPLED]) * num_tokens,
        loss_mask=array("b", [0]) * num_tokens,
        num_prompt_tokens=len(prompt.token_ids),
        completion=text,
        finish_reason="stop",
    )
