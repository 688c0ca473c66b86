"""Every held-out evaluation of one model, one after the other: the main one and the suites, each with its own reward.

It must not know how a policy is trained, nor what is done about the results.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from services.control.catalogue import SUITE_FAMILY
from services.control.config import RunConfig
from services.control.evaluate_config import MAIN
from services.control.evaluation import Evaluation, evaluate
from services.control.parts import Parts
from services.control.preflight import RunInputs
from services.control.regression_gate import Scores
from services.control.run_state import RunState

_COUNTS = ("component", "threshold", "num_samples", "temperature", "max_completion_tokens", "metric")
"""Settings of an evaluation that change its scores on the same prompts."""


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


def fingerprints(config: RunConfig, inputs: RunInputs) -> dict[str, str]:
    """Of each evaluation a digest of what its scores depend on beside the weights: its prompts, and how each counts."""
    found = {}
    for name, own in config.evaluate.by_name.items():
        if name in inputs.held_out:
            measured = own.model_dump(mode="json", include=set(_COUNTS))
            rows = [(prompt.text, dict(prompt.reference)) for prompt in inputs.held_out[name].prompts]
            found[name] = hashlib.sha256(json.dumps([measured, rows], sort_keys=True).encode()).hexdigest()
    return found


def comparable(state: RunState, config: RunConfig, inputs: RunInputs) -> RunState:
    """The state with those scores from before the first step that later ones may be compared with: a resumed run may
    have other prompts, or count them otherwise."""
    now = fingerprints(config, inputs)
    before = now | dict(state.scores_of)  # A checkpoint of an earlier version does not say.
    kept = {name: scores for name, scores in state.scores_before.items() if before.get(name) == now.get(name)}
    return replace(state, scores_before=kept, scores_of={name: now[name] for name in kept if name in now})
