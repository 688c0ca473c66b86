"""Which advantage, which policy loss and whether a critic: an algorithm is one line of `ALGORITHMS`.

It must not import torch: the configuration reads it to validate names. Invariant: every `advantage` is a key of
`advantages.ADVANTAGES` and every `loss` a key of `losses.POLICY_LOSSES`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """The parts that make a policy-gradient algorithm.

    Attributes:
        advantage: name in `ADVANTAGES`.
        loss: name in `POLICY_LOSSES`.
        needs_critic: whether a value function is trained beside the policy.
    """

    advantage: str
    loss: str
    needs_critic: bool


ALGORITHMS = {
    "ppo": Algorithm(advantage="gae", loss="ppo_clip", needs_critic=True),
    "grpo": Algorithm(advantage="group_normalised", loss="ppo_clip", needs_critic=False),
    "rloo": Algorithm(advantage="leave_one_out", loss="reinforce", needs_critic=False),
}
