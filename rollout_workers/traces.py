"""A rollout as it grows: what the policy sampled, and what it was given to read between two turns.

It must not know engines, environments or tokenizers. Invariant: every per-token column grows by as many entries as
there are new tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.contracts.dialogue import Dialogue
from services.contracts.records import NOT_SAMPLED, FinishReason, Message, Prompt, Rollout, RolloutGroup

if TYPE_CHECKING:
    from rollout_workers.engine import Completion


class Trace:
    """The columns of one rollout, which begin with the prompt, and its turns."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.token_ids = array("i")
        self._logprobs, self._versions, self._mask = array("f"), array("i"), array("b")
        self._turns: tuple[Message, ...] = ()
        self._give(prompt.token_ids)

    @property
    def num_completion_tokens(self) -> int:
        """Tokens after the prompt so far."""
        return len(self.token_ids) - len(self.prompt.token_ids)

    @property
    def num_turns(self) -> int:
        """The policy's own so far, of those that have a text."""
        return self.dialogue.number

    @property
    def dialogue(self) -> Dialogue:
        """All that was said so far."""
        prompt = self.prompt
        return Dialogue(prompt=prompt.text, messages=prompt.messages, reference=prompt.reference, turns=self._turns)

    def say(self, completion: Completion, *, text: str | None = None) -> None:
        """Tokens that the policy sampled; `text` makes them a turn of a dialogue."""
        self.token_ids.extend(completion.token_ids)
        self._logprobs.extend(completion.logprobs)
        self._versions.extend(completion.policy_versions)
        self._mask.extend([1] * len(completion.token_ids))
        if text is not None:
            self._turns += (Message(role="assistant", content=text),)

    def read(self, token_ids: Sequence[int], turn: Message) -> None:
        """Somebody else's turn."""
        self._give(token_ids)
        self._turns += (turn,)

    def end(self, *, sample_index: int, completion: str, finish_reason: FinishReason) -> Rollout:
        """The rollout; `completion` is the text after the prompt."""
        return Rollout(
            prompt_id=self.prompt.id,
            sample_index=sample_index,
            token_ids=self.token_ids,
            logprobs=self._logprobs,
            policy_versions=self._versions,
            loss_mask=self._mask,
            num_prompt_tokens=len(self.prompt.token_ids),
            completion=completion,
            finish_reason=finish_reason,
            turns=self._turns,
        )

    def _give(self, token_ids: Sequence[int]) -> None:
        count = len(token_ids)
        self.token_ids.extend(token_ids)
        self._logprobs.extend([0.0] * count)
        self._versions.extend([NOT_SAMPLED] * count)
        self._mask.extend([0] * count)


def to_group(prompt: Prompt, completions: Sequence[Completion]) -> RolloutGroup:
    """A prompt with its completions, each in one piece, in order of sample index."""
    rollouts = []
    for index, completion in enumerate(completions):
        trace = Trace(prompt)
        trace.say(completion)
        rollouts.append(
            trace.end(sample_index=index, completion=completion.text, finish_reason=completion.finish_reason)
        )
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))
