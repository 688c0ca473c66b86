"""The last check on new weights: the loaded model must give a few fixed tokens the logprobs that the learner gave them.

Pure; it must not know an engine. Invariant: a difference that is not a number never passes.
"""

from collections.abc import Sequence
from statistics import fmean

from services.contracts.errors import CanaryMismatch
from services.contracts.records import Canary


def check_canary(canary: Canary, found: Sequence[Sequence[float]], *, version: int) -> float:
    """Mean absolute difference between the learner's logprobs and those `found` by a worker, in nats.

    Args:
        found: for each sequence of the canary, (T - 1,) logprobs of its tokens 1 … T-1.

    Raises:
        CanaryMismatch: with the numbers, when the difference exceeds the canary's tolerance.
    """
    differences = [
        abs(learner - worker)
        for expected, sequence in zip(canary.logprobs, found, strict=True)
        for learner, worker in zip(expected, sequence, strict=True)
    ]
    error = fmean(differences) if differences else float("nan")
    if not error <= canary.tolerance:
        raise CanaryMismatch(
            f"version {version}: the loaded model's logprobs of {len(differences)} canary tokens differ from the "
            f"learner's by {error:.3g} on average and {max(differences, default=float('nan')):.3g} at most; the "
            f"tolerance is {canary.tolerance:.3g}. Likely causes: a tensor that never arrived or arrived under another "
            "name, an output head that is stale, a number format that differs from the learner's (model.dtype), or "
            "another model"
        )
    return error
