"""The rewards of steps, and where they stand among the sampled tokens of a batch.

It must not know what is made of them. Invariant: every step of every reward is there once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_learner.batching import Batch
from services.contracts.records import ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRewards:
    """All S steps of a batch.

    Attributes:
        rows: (S,) which sequence each belongs to.
        columns: (S,) which of its sampled tokens ends it; of a step that a tool's token ends, the last one before.
        values: (S,) their rewards.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    def spread(self, values: Tensor, mask: Tensor) -> Tensor:
        """(S,) → (B, T): a value for each step, added up at the token that ends it."""
        spread = torch.zeros(mask.shape, dtype=values.dtype)
        return spread.index_put((self.rows, self.columns), values, accumulate=True)

    def sums(self, num_rows: int) -> Tensor:
        """(B,) the sum of each sequence's steps."""
        return torch.zeros(num_rows, dtype=self.values.dtype).index_add(0, self.rows, self.values)


def step_rewards(groups: Sequence[ScoredGroup], batch: Batch) -> StepRewards:
    """The steps of all rewards, in order."""
    rewards = [reward for scored in groups for reward in scored.rewards]
    rows = [row for row, reward in enumerate(rewards) for _ in reward.steps]
    return StepRewards(
        rows=torch.tensor(rows, dtype=torch.int64),
        columns=torch.tensor(
            [
                column
                for reward, positions in zip(rewards, batch.positions, strict=True)
                for column in _columns([step.token for step in reward.steps], positions)
            ],
            dtype=torch.int64,
        ),
        values=torch.tensor([step.value for reward in rewards for step in reward.steps], dtype=torch.float64),
    )


def _columns(tokens: Sequence[int | None], positions: Tensor) -> list[int]:
    """Which sampled token is the last at or before each token; the first where there is none."""
    assert None not in tokens, "the steps' tokens were not looked up"
    after = torch.searchsorted(positions, torch.tensor(tokens, dtype=torch.int64), right=True)
    return (after - 1).clamp(min=0).tolist()
