"""Settings of a teacher beside the model that learns from demonstrations.

It must not import torch.
"""

from typing import Literal

from pydantic import Field

from services.contracts.settings import Section


class TeacherConfig(Section):
    """A frozen model of the same tokenizer, whose whole distribution over the next token is learnt."""

    path: str
    """Folder or hub name of the teacher."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; the default branch where it is not given."""
    weight: float = Field(default=1.0, gt=0, le=1)
    """Share of the divergence from the teacher in the loss; the rest is the cross-entropy of the demonstrations."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits before they are compared; above 1 unlikely tokens count more."""
    direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(teacher ‖ student), which covers all that the teacher does; reverse: KL(student ‖ teacher), which
    leaves out what the student cannot do."""
