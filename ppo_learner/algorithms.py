"""Which advantage, which policy loss, whether a critic, and which settings: an algorithm is one line of `ALGORITHMS`.

It must not import torch: the configuration reads it to validate names. Invariant: every `advantage` is a key of
`advantages.ADVANTAGES`, every `loss` a key of `losses.POLICY_LOSSES`, and every setting one of `LearnerConfig`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """The parts that make a policy-gradient algorithm.

    Attributes:
        advantage: name in `ADVANTAGES`.
        loss: name in `POLICY_LOSSES`.
        needs_critic: whether a value function is trained beside the policy.
        needs_greedy_baseline: whether the greedy answer to each prompt is sampled and scored too.
        settings: defaults that the algorithm's paper prescribes, in place of those beside the settings themselves.
    """

    advantage: str
    loss: str
    needs_critic: bool = False
    needs_greedy_baseline: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def compares_within_groups(self) -> bool:
        """Whether a completion alone has no advantage."""
        return self.compares_only_within_groups or self.advantage == "step_normalised"

    @property
    def compares_only_within_groups(self) -> bool:
        """Whether a group whose completions all earned the same teaches nothing."""
        return self.advantage in ("group_normalised", "leave_one_out")


ALGORITHMS = {
    "ppo": Algorithm(advantage="gae", loss="ppo_clip", needs_critic=True, settings={"whiten_advantages": True}),
    "grpo": Algorithm(advantage="group_normalised", loss="ppo_clip"),
    "grpo_process": Algorithm(
        advantage="step_normalised", loss="ppo_clip", settings={"total_weight": 0.0, "step_weight": 1.0}
    ),
    "rloo": Algorithm(advantage="leave_one_out", loss="reinforce"),
    "reinforce": Algorithm(advantage="monte_carlo", loss="reinforce"),
    "reinforce_pp": Algorithm(advantage="monte_carlo", loss="ppo_clip", settings={"whiten_advantages": True}),
    "reinforce_pp_baseline": Algorithm(
        advantage="group_normalised",
        loss="ppo_clip",
        settings={
            "normalise_group_std": False,
            "whiten_advantages": True,
            "kl_placement": "loss",
            "kl_estimator": "k2",
        },
    ),
    "remax": Algorithm(advantage="greedy_baseline", loss="reinforce", needs_greedy_baseline=True),
    "dr_grpo": Algorithm(
        advantage="group_normalised",
        loss="ppo_clip",
        settings={"normalise_group_std": False, "loss_aggregation": "constant_length"},
    ),
    "dapo": Algorithm(advantage="group_normalised", loss="ppo_clip", settings={"clip_ratio_high": 0.28}),
    "gspo": Algorithm(
        advantage="group_normalised",
        loss="gspo",
        settings={"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4, "loss_aggregation": "sequence_mean"},
    ),
    "cispo": Algorithm(
        advantage="group_normalised", loss="cispo", settings={"clip_ratio_low": 1.0, "clip_ratio_high": 4.0}
    ),
    "sapo": Algorithm(advantage="group_normalised", loss="sapo", settings={"loss_aggregation": "sequence_mean"}),
}
