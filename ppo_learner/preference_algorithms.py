"""What is learnt from preferences, and how: an algorithm is one line of `PREFERENCE_ALGORITHMS` and a loss.

It must not import torch: the configuration reads it to validate names. Invariant: its names are those of
`preference_losses.PREFERENCE_LOSSES`.
"""

from dataclasses import dataclass

from services.contracts.preference_example import PreferenceForm


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceAlgorithm:
    """What an algorithm needs beside its loss.

    Attributes:
        examples: what a row of the data holds.
        needs_reference: it looks at the policy only in comparison with its initial weights.
        beta: what `beta` is where it is not given; None where it has no effect.
        settings: further settings that have an effect with it.
    """

    examples: PreferenceForm = "pairs"
    needs_reference: bool = True
    beta: float | None = 0.1
    settings: tuple[str, ...] = ()


PREFERENCE_ALGORITHMS = {
    "dpo": PreferenceAlgorithm(settings=("nll_weight",)),
    "cdpo": PreferenceAlgorithm(settings=("label_smoothing", "nll_weight")),
    "robust_dpo": PreferenceAlgorithm(settings=("label_smoothing", "nll_weight")),
    "ipo": PreferenceAlgorithm(settings=("nll_weight",)),
    "simpo": PreferenceAlgorithm(needs_reference=False, beta=2.0, settings=("target_margin", "nll_weight")),
    "orpo": PreferenceAlgorithm(needs_reference=False, beta=None, settings=("odds_ratio_weight",)),
    "kto": PreferenceAlgorithm(examples="labels", settings=("desirable_weight", "undesirable_weight")),
}
