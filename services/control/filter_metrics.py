"""What dynamic sampling put aside in a step, as plain numbers.

It must not know how it is decided; `rollout_buffer` does. Invariant: every share is of groups that were sampled for the
step, so that the trained ones, which are chosen for their spread, are not taken for the policy's level.
"""

from collections.abc import Sequence
from statistics import fmean

from services.contracts.records import ScoredGroup
from services.control.catalogue import FILTERED
from services.control.evaluate_config import HeldOutConfig
from services.control.evaluation import is_correct


def filter_metrics(
    trained: Sequence[ScoredGroup], filtered: Sequence[ScoredGroup], config: HeldOutConfig
) -> dict[str, float]:
    """Shares of 1, and a reward.

    Args:
        config: says which completions count as correct.

    Returns:
        `share`: groups put aside, of all sampled. `all_right` and `all_wrong`: those among them whose completions are
        all correct, or none is, of all sampled. `reward`: mean over all sampled, trained or not.

    Raises:
        SampleNotScorable: the reward has no such component as counts.
    """
    num_sampled = len(trained) + len(filtered)
    correct = [[is_correct(reward, config) for reward in scored.rewards] for scored in filtered]
    rewards = [reward.value for scored in (*trained, *filtered) for reward in scored.rewards]
    return {
        FILTERED: len(filtered) / num_sampled,
        "filtered/all_right": sum(map(all, correct)) / num_sampled,
        "filtered/all_wrong": sum(not any(group) for group in correct) / num_sampled,
        "filtered/sampled_reward": fmean(rewards),
    }
