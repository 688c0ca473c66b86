"""Which demonstrations a learner step learns beside its rollouts, and how much they count.

It must not know how they are learnt. Invariant: both are functions of the seed and of the number of steps before, so
that a run that was resumed, or whose learner was replaced, learns what an undisturbed one does.
"""

from collections.abc import Sequence

from rollout_workers.prompts import RowOrder
from services.contracts.records import Demonstration, WeightedDemonstrations
from services.control.config import DemonstrationsConfig


class DemonstrationMix:
    """Rows in an order of their own, epoch after epoch, so many for each step.

    Args:
        config: the section `demonstrations`.
        demonstrations: its rows; at least one.
        seed: the run's.
        num_steps: learner steps of the whole run, over which a schedule goes that has no length of its own.
    """

    def __init__(
        self, config: DemonstrationsConfig, demonstrations: Sequence[Demonstration], *, seed: int, num_steps: int
    ) -> None:
        self._config = config
        self._demonstrations = demonstrations
        self._num_steps = num_steps
        # Not the order of the prompts, or a file that holds both would always show the two of a row together.
        self._rows = RowOrder(len(demonstrations), seed=f"{seed}/demonstrations", shuffle=config.shuffle)

    def at(self, step: int) -> WeightedDemonstrations:
        """Those of a step, counted from 0; a step whose coefficient is 0 has none."""
        coefficient = self.coefficient(step)
        count = self._config.rows_per_step if coefficient else 0
        rows = (self._rows.at(step * count + number)[1] for number in range(count))
        return WeightedDemonstrations(
            demonstrations=tuple(self._demonstrations[row] for row in rows),
            coefficient=coefficient,
            policy_weight=1.0 - coefficient if self._config.rl_weight == "complement" else 1.0,
        )

    def coefficient(self, step: int) -> float:
        """λ of a step, counted from 0.

        MIXER (Ranzato et al. 2016, arXiv 1511.06732) goes from cross-entropy to REINFORCE, too, but along the tokens of
        a sequence: of T tokens the first s are learnt from the demonstration and the others from samples that go on
        from there, and s falls by Δ every few epochs. A linear λ keeps the order, demonstrations first and rewards at
        the end; what it mixes is whole demonstrations with samples from the prompt on.
        """
        config = self._config
        if config.schedule == "constant":
            return config.coefficient
        progress = min(step / (config.schedule_steps or self._num_steps), 1.0)
        return (1.0 - progress) * config.coefficient + progress * config.final_coefficient
