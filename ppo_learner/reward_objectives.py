"""What a reward model can be trained to do: an objective is one line of `REWARD_OBJECTIVES`.

It must not import torch: the configuration reads it to validate names. Invariant: every `loss` is a key of
`reward_losses.REWARD_LOSSES`.
"""

from dataclasses import dataclass

from services.contracts.reward_example import ExampleForm
from services.contracts.reward_model import RewardHead


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardObjective:
    """The parts that make a reward model's objective.

    Attributes:
        loss: name in `REWARD_LOSSES`.
        examples: what a row of the data holds.
    """

    loss: str
    examples: ExampleForm

    @property
    def head(self) -> RewardHead:
        """Whether whole completions are scored, or their steps."""
        return "process" if self.examples == "steps" else "outcome"

    @property
    def compares(self) -> bool:
        """Whether an example's scores count only against each other; else each has a label of its own."""
        return self.examples in ("pairs", "lists")


REWARD_OBJECTIVES = {
    "bradley_terry": RewardObjective(loss="bradley_terry", examples="pairs"),
    "plackett_luce": RewardObjective(loss="plackett_luce", examples="lists"),
    "outcome": RewardObjective(loss="cross_entropy", examples="outcomes"),
    "outcome_regression": RewardObjective(loss="squared_error", examples="outcomes"),
    "process": RewardObjective(loss="cross_entropy", examples="steps"),
    "process_regression": RewardObjective(loss="squared_error", examples="steps"),
}
