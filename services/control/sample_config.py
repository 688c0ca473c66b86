"""Everything `trireme sample` can be told: what an evaluation can, and which completions become demonstrations."""

from typing import Self

from pydantic import model_validator

from services.control.config import RunConfig
from services.control.selection import SelectConfig


class SampleRunConfig(RunConfig):
    """What `trireme sample` can be told."""

    select: SelectConfig | None = None
    """Which completions become demonstrations; without it all are written down, and none is scored."""

    @model_validator(mode="after")
    def _dialogues_become_conversations(self) -> Self:
        if self.select is not None and self.rollout.environment is not None and self.data.template == "plain":
            raise ValueError(
                "select would make demonstrations of whole dialogues, rollout.environment's words among them, and in "
                "plain text nothing tells them from the policy's; set data.template to chat, or leave out select"
            )
        return self
