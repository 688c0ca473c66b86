"""Every held-out evaluation of one model, one after the other: the main one and the suites, each with its own reward.

It must not know how a policy is trained, nor what is done about the results.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from services.control.catalogue import SUITE_FAMILY
from services.control.config import RunConfig
from services.control.evaluate_config import MAIN
from services.control.evaluation import Evaluation, evaluate
from services.control.parts import Parts
from services.control.preflight import RunInputs
from services.control.regression_gate import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """All that was measured of one model, by the names of the evaluations.

    Attributes:
        scores: what the metric of each is the mean of.
    """

    evaluations: Mapping[str, Evaluation]
    scores: Scores

    def __str__(self) -> str:
        suites = [f"{name} {fmean(scores):.3g}" for name, scores in self.scores.items() if name != MAIN]
        return ", ".join([str(self.main), *suites] if self.main else suites)

    @property
    def main(self) -> Evaluation | None:
        """The one that `evaluate.prompts` asks for."""
        return self.evaluations.get(MAIN)

    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, evaluation in self.evaluations.items():
            found |= evaluation.metrics(MAIN if name == MAIN else f"{SUITE_FAMILY}/{name}")
        return found


async def evaluate_all(config: RunConfig, inputs: RunInputs, parts: Parts) -> HeldOut:
    """Sample and grade the prompts of every evaluation.

    Raises:
        SampleNotScorable: when a reward service refuses a sample.
    """
    settings = config.evaluate.by_name
    evaluations = {
        name: await evaluate(
            inputs.held_out[name].prompts,
            rollouts=parts.rollouts,
            rewards=parts.suite_rewards.get(name, parts.rewards),
            sampling=config.rollout.to_sampling(seed=config.run.seed),
            config=own,
            gold=parts.gold if name == MAIN else None,
            name=name,
        )
        for name, own in settings.items()
    }
    scores = {name: evaluation.scores(settings[name].metric) for name, evaluation in evaluations.items()}
    return HeldOut(evaluations=evaluations, scores=scores)
