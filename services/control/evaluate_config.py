"""Settings of held-out evaluations: what is measured on which prompts, by which reward, and how far it may fall.

It must not know how anything is sampled or compared. Invariant: what a gate looks at is measured.
"""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from reward_server.config import RewardConfig
from rollout_workers.prompts import DataConfig
from services.contracts.settings import Section

MAIN = "evaluation"
"""What the evaluation is called that `evaluate` itself describes, among the suites."""

_PASS_AT = re.compile(r"pass@([1-9][0-9]*)")


class GateConfig(Section):
    """How far a metric may fall below what it was before training, prompt by prompt on the same prompts."""

    max_drop: float = Field(default=0.0, ge=0)
    """How far it may fall, in the metric's own unit: 0.02 are two points of accuracy."""
    breach: Literal["proven", "measured", "possible"] = "proven"
    """When it has fallen too far: proven, when the whole 95% interval of the drop lies above max_drop; measured, when
    the drop itself does; possible, when any of the interval does, so that only a shown non-inferiority passes."""
    action: Literal["warn", "stop"] = "stop"
    """warn says so; stop ends the run with a checkpoint, an export and exit code 3."""


class HeldOutConfig(Section):
    """What is measured on some held-out prompts."""

    prompts: str | None = None
    """Data file or hub name with held-out prompts, in the form that `data` describes."""
    split: str = "test"
    """Split of a hub data set."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many rows."""
    component: str | None = None
    """Reward component that counts as correctness; the total where it is not given."""
    threshold: float = 1.0
    """A completion is correct when that value is at least this."""
    num_samples: int = Field(default=0, ge=0)
    """Completions a prompt, at the rollout temperature, for sampled accuracy and pass@k; 0: greedy accuracy only."""
    ks: tuple[int, ...] = (1,)
    """The k of each pass@k to report; none may exceed num_samples."""
    temperature: float | None = Field(default=None, gt=0)
    """Temperature of those completions; rollout.temperature where it is not given."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Longest completion, in tokens; rollout.max_completion_tokens where it is not given."""
    metric: str = "accuracy"
    """The one number that a gate looks at: accuracy or reward (of the greedy completions), sampled_accuracy, or pass@k
    with a k among ks."""
    gate: GateConfig | None = None
    """How far that number may fall below what it was before training; without a gate it is only measured."""

    @model_validator(mode="after")
    def _ks_fit(self) -> Self:
        if self.num_samples and max(self.ks, default=1) > self.num_samples:
            raise ValueError(
                f"pass@{max(self.ks)} needs num_samples of at least {max(self.ks)}, not {self.num_samples}"
            )
        return self

    @model_validator(mode="after")
    def _metric_is_measured(self) -> Self:
        names = ["accuracy", "reward"]
        if self.num_samples:
            names += ["sampled_accuracy", *(f"pass@{k}" for k in self.ks)]
        if self.metric in names:
            return self
        if self.metric == "sampled_accuracy" or _PASS_AT.fullmatch(self.metric):
            raise ValueError(
                f"metric {self.metric} is not measured with num_samples {self.num_samples} and ks {list(self.ks)}; "
                "set num_samples, and ks to hold its k"
            )
        raise ValueError(f"metric {self.metric!r} is none; choose one of {', '.join(names)}")


class SuiteConfig(HeldOutConfig):
    """One further evaluation: of an ability that training might harm, or help."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """What it is called in metrics and reports: small letters, digits and underscores."""
    data: DataConfig | None = None
    """Its prompts, where they have another form than the run's: a section `data` of its own, in place of `prompts`."""
    reward: RewardConfig | None = None
    """What scores its completions; the run's own reward where it is not given."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prompts is None) == (self.data is None):
            found = "neither" if self.data is None else "both"
            raise ValueError(
                f"suite {self.name} needs either prompts (rows in the form of the run's data) or data (a section of "
                f"its own); {found} was given"
            )
        twice = self.model_fields_set & {"split", "limit"}
        if self.data is not None and twice:
            raise ValueError(f"suite {self.name} has a section data of its own; set {min(twice)} there")
        return self


class EvaluateConfig(HeldOutConfig):
    """Held-out accuracy: a completion is correct when its reward (or one component) reaches the threshold."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates before the first and after the last step only."""
    suites: tuple[SuiteConfig, ...] = ()
    """Further evaluations, each with its own prompts, reward, metric and gate, at the same times."""

    @property
    def by_name(self) -> dict[str, HeldOutConfig]:
        """Every evaluation that has prompts, the main one first."""
        main: dict[str, HeldOutConfig] = {} if self.prompts is None else {MAIN: self}
        return main | {suite.name: suite for suite in self.suites}

    @model_validator(mode="after")
    def _suites_have_names_of_their_own(self) -> Self:
        names = [MAIN, *(suite.name for suite in self.suites)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two evaluations are called {twice!r} ({MAIN} is the main one); rename a suite")
        return self

    @model_validator(mode="after")
    def _gate_has_prompts(self) -> Self:
        if self.gate is not None and self.prompts is None:
            raise ValueError("evaluate.gate looks at evaluate.prompts, which names no data; give it, or use suites")
        return self
