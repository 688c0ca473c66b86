"""Which advantage, which policy loss and whether a critic: an algorithm is one line of `ALGORITHMS`.

It must not import torch: the configuration reads it to validate names. Invariant: every `advantage` is a key of
`advantages.ADVANTAGES` and every `loss` a key of `losses.POLICY_LOSSES`.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """The parts that make a policy-gradient algorithm.

    Attributes:
        advantage: name in `ADVANTAGES`.
        loss: name in `POLICY_LOSSES`.
        needs_critic: whether a value function is trained beside the policy.
        learns_from: which rewards count where no weights are given: completions' totals, or those of their steps.
    """

    advantage: str
    loss: str
    needs_critic: bool
    learns_from: Literal["total", "steps"] = "total"


ALGORITHMS = {
    "ppo": Algorithm(advantage="gae", loss="ppo_clip", needs_critic=True),
    "grpo": Algorithm(advantage="group_normalised", loss="ppo_clip", needs_critic=False),
    "grpo_process": Algorithm(advantage="step_normalised", loss="ppo_clip", needs_critic=False, learns_from="steps"),
    "rloo": Algorithm(advantage="leave_one_out", loss="reinforce", needs_critic=False),
}
