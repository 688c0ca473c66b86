"""What an environment is told: what was said between the policy and it, and what the data set gives.

Standard library only, so that who writes an environment needs nothing heavier to read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.contracts.records import Json, Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """What an environment is told when the policy has ended a turn.

    Attributes:
        prompt: the text that the policy continued.
        messages: the chat behind it; empty for a plain-text prompt.
        reference: ground truth and whatever else the data set gives.
        turns: all that was said after the prompt, in order; the last is the turn to be answered.
    """

    prompt: str
    messages: tuple[Message, ...] = ()
    reference: Mapping[str, Json] = field(default_factory=dict)
    turns: tuple[Message, ...]

    @property
    def said(self) -> str:
        """The policy's turn that is to be answered."""
        return self.turns[-1].content

    @property
    def number(self) -> int:
        """Which of the policy's turns that is, from 1."""
        return sum(turn.role == "assistant" for turn in self.turns)
