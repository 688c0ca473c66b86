"""The learning rate of a step, as a function of its number alone, so that a resumed run has nothing to restore.

It must not know optimizers.
"""

import math

from ppo_learner.optimizer_config import OptimizerConfig


def learning_rate_factor(config: OptimizerConfig, *, step: int, total_steps: int) -> float:
    """What the peak learning rate is multiplied by: a linear rise, then the schedule, which reaches 0 after the run.

    Args:
        step: number of the learner step, from 0.
        total_steps: learner steps of the whole run.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min((step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1), 1.0)
    match config.lr_schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
