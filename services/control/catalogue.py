"""What the metrics are called, which unit they have, and which belong in one picture.

The terminal, the curves and the report take titles and number formats from here, so that they agree. It must not know
where a metric comes from or how it is drawn. A metric that is not listed still works: it is called by its own name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["number", "count", "share", "seconds", "rate", "bytes"]

REWARD = "reward/mean"
REWARD_SPREAD = "reward/std"
ACCURACY = "evaluation/accuracy"
STEP_SECONDS = "seconds/step"
GOLD = "gold/reward"
GOLD_SPREAD = "gold/reward_std"
PROXY = "gold/proxy"
PROXY_SPREAD = "gold/proxy_std"
AGREEMENT = "gold/correlation"
LENGTH_CORRELATION = "signals/length_correlation"
AT_MAXIMUM = "signals/at_maximum"
ONE_VALUE = "signals/one_value"
FLAT_GROUPS = "signals/flat_groups"
FILTERED = "filtered/share"
KL = "kl/reference"
ALARM_FAMILY = "alarms"
SUITE_FAMILY = "suites"

PHASES: Mapping[str, str] = {
    "sampling": "#3987d6",
    "scoring": "#cf8a14",
    "learning": "#2a9d78",
    "sync": "#bf619d",
}
"""The phases of a step, each with the colour that it has everywhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """How one metric is shown.

    Attributes:
        title: what it is called on its own.
        unit: how its numbers are written.
        panel: title of the picture that it is drawn in; None: in no picture.
        label: what it is called in that picture, where it is not the only one.
        only_when_it_varies: a constant is not worth a picture.
    """

    title: str
    unit: Unit = "number"
    panel: str | None = None
    label: str = ""
    only_when_it_varies: bool = False


METRICS: Mapping[str, Metric] = {
    REWARD: Metric(title="reward", panel="Reward", label="trained"),
    "reward_of_greedy": Metric(title="reward of greedy answers", panel="Reward", label="greedy"),
    REWARD_SPREAD: Metric(title="reward spread"),
    "process/step_reward": Metric(title="step reward", panel="Reward of a step"),
    "process/steps": Metric(title="steps per completion", panel="Steps per completion"),
    ACCURACY: Metric(title="accuracy", unit="share", panel="Held-out accuracy", label="greedy"),
    "evaluation/sampled_accuracy": Metric(
        title="sampled accuracy", unit="share", panel="Held-out accuracy", label="sampled"
    ),
    PROXY: Metric(title="proxy reward, held out", panel="Held-out rewards", label="proxy"),
    GOLD: Metric(title="gold reward", panel="Held-out rewards", label="gold"),
    GOLD_SPREAD: Metric(title="gold reward spread"),
    PROXY_SPREAD: Metric(title="proxy reward spread, held out"),
    AGREEMENT: Metric(title="correlation of proxy and gold", panel="Correlation of proxy and gold"),
    LENGTH_CORRELATION: Metric(
        title="correlation of reward and length", panel="Reward and length, correlation within groups"
    ),
    AT_MAXIMUM: Metric(
        title="rewards at their maximum", unit="share", panel="Rewards without difference", label="at maximum"
    ),
    FLAT_GROUPS: Metric(
        title="groups without difference", unit="share", panel="Rewards without difference", label="groups"
    ),
    "zero_variance_groups": Metric(
        title="trained groups without difference", unit="share", panel="Rewards without difference", label="trained"
    ),
    ONE_VALUE: Metric(title="rewards of one value", unit="share"),
    FILTERED: Metric(title="groups filtered", unit="share", panel="Filtered by dynamic sampling", label="all"),
    "filtered/all_right": Metric(
        title="filtered, all right", unit="share", panel="Filtered by dynamic sampling", label="all right"
    ),
    "filtered/all_wrong": Metric(
        title="filtered, all wrong", unit="share", panel="Filtered by dynamic sampling", label="all wrong"
    ),
    "filtered/sampled_reward": Metric(title="reward, filtered groups too", panel="Reward", label="all sampled"),
    "evaluation/reward": Metric(title="held-out reward", panel="Held-out reward"),
    "loss": Metric(title="loss", panel="Loss", label="training"),
    "validation/loss": Metric(title="validation loss", panel="Loss", label="validation"),
    "accuracy": Metric(title="training accuracy", unit="share", panel="Pairs in the right order", label="training"),
    "validation/accuracy": Metric(
        title="validation accuracy", unit="share", panel="Pairs in the right order", label="validation"
    ),
    "rewards/margin": Metric(title="reward margin", panel="Implicit rewards", label="margin"),
    "rewards/chosen": Metric(title="implicit reward, chosen", panel="Implicit rewards", label="chosen"),
    "rewards/rejected": Metric(title="implicit reward, rejected", panel="Implicit rewards", label="rejected"),
    "logprobs/chosen": Metric(title="logprob, chosen", panel="Logprobs of completions", label="chosen"),
    "logprobs/rejected": Metric(title="logprob, rejected", panel="Logprobs of completions", label="rejected"),
    KL: Metric(title="KL to reference", panel="KL per token", label="reference"),
    "kl/old": Metric(title="KL to old policy", panel="KL per token", label="old policy"),
    "entropy": Metric(title="entropy", panel="Entropy"),
    "completion_tokens/mean": Metric(title="completion tokens", panel="Completion tokens"),
    "turns/mean": Metric(title="turns of the policy", panel="Turns of the policy in a dialogue"),
    "completion_tokens/truncated": Metric(
        title="truncated completions", unit="share", panel="Truncated completions", only_when_it_varies=True
    ),
    "policy_loss": Metric(title="policy loss", panel="Policy loss"),
    "value_loss": Metric(title="value loss", panel="Value loss"),
    "demonstrations/loss": Metric(title="loss of demonstrations", panel="Loss of demonstrations"),
    "demonstrations/coefficient": Metric(
        title="coefficient of demonstrations", panel="Coefficient of demonstrations", only_when_it_varies=True
    ),
    "demonstrations/tokens": Metric(title="learnt tokens of demonstrations", unit="count"),
    "explained_variance": Metric(title="explained variance", panel="Explained variance"),
    "clip_fraction": Metric(title="clip fraction", unit="share", panel="Clipped tokens", label="policy"),
    "clip_fraction/low": Metric(
        title="clip fraction, lower bound", unit="share", panel="Clipped tokens", label="policy, low"
    ),
    "clip_fraction/high": Metric(
        title="clip fraction, upper bound", unit="share", panel="Clipped tokens", label="policy, high"
    ),
    "value_clip_fraction": Metric(title="value clip fraction", unit="share", panel="Clipped tokens", label="values"),
    "ratio/max": Metric(title="largest ratio", panel="Probability ratio, extremes", label="largest"),
    "ratio/min": Metric(title="smallest ratio", panel="Probability ratio, extremes", label="smallest"),
    "advantage/max": Metric(title="largest advantage", panel="Advantages", label="largest"),
    "advantage/std": Metric(title="advantage spread", panel="Advantages", label="spread"),
    "advantage/mean": Metric(title="mean advantage"),
    "advantage/min": Metric(title="smallest advantage", panel="Advantages", label="smallest"),
    "return/mean": Metric(title="mean return", panel="Returns and values", label="return"),
    "value/mean": Metric(title="mean value", panel="Returns and values", label="value"),
    "return/std": Metric(title="return spread", panel="Returns and values", label="return, spread"),
    "gradient_norm/policy": Metric(title="policy gradient norm", panel="Gradient norm", label="policy"),
    "gradient_norm/critic": Metric(title="critic gradient norm", panel="Gradient norm", label="critic"),
    **{
        f"gradient_norm/{network}/{kind}": Metric(
            title=f"{network} gradient norm, {kind}", panel=f"Gradient norm of the {network}, by module", label=kind
        )
        for network in ("policy", "critic")
        for kind in ("embedding", "attention", "mlp", "norm", "head", "other")
    },
    "updates_skipped": Metric(
        title="updates skipped", unit="count", panel="Updates skipped for no finite gradient", only_when_it_varies=True
    ),
    "sampler_gap/mean": Metric(title="sampler gap", panel="Sampler–learner gap", label="mean"),
    "sampler_gap/max": Metric(title="largest sampler gap", panel="Sampler–learner gap", label="largest"),
    "importance/ratio_ess": Metric(title="ESS, tokens", unit="share", panel="Effective sample size", label="tokens"),
    "importance/ratio_sequence_ess": Metric(
        title="ESS, completions", unit="share", panel="Effective sample size", label="completions"
    ),
    "importance/ess": Metric(title="ESS, corrected", unit="share", panel="Effective sample size", label="corrected"),
    "importance/ratio_max": Metric(title="largest importance ratio"),
    "importance/ratio_kl": Metric(title="KL of sampler to learner"),
    "importance/mean": Metric(title="mean importance weight"),
    "importance/clipped": Metric(title="clipped importance weights", unit="share", panel="Clipped importance weights"),
    "staleness/mean": Metric(title="staleness", panel="Staleness", label="mean", only_when_it_varies=True),
    "staleness/max": Metric(title="largest staleness", panel="Staleness", label="largest", only_when_it_varies=True),
    "reward_versions": Metric(
        title="reward versions", unit="count", panel="Versions of the reward in a step", only_when_it_varies=True
    ),
    "reward_service/calls": Metric(title="calls to the reward service", unit="count"),
    "reward_service/retries": Metric(
        title="retries of rewards", unit="count", panel="Reward service", label="retries", only_when_it_varies=True
    ),
    "reward_service/ejections": Metric(
        title="ejected reward servers",
        unit="count",
        panel="Reward service",
        label="ejections",
        only_when_it_varies=True,
    ),
    "reward_service/waited_seconds": Metric(
        title="wait for rewards", unit="seconds", panel="Wait for the reward service", only_when_it_varies=True
    ),
    "learner_wait": Metric(title="learner waits", unit="share", panel="Learner waits for rollouts"),
    "rollout_workers": Metric(title="rollout workers", unit="count", panel="Rollout workers", only_when_it_varies=True),
    "sync/stall_seconds": Metric(title="stall per sync", unit="seconds", panel="Engine stands still for a sync"),
    "kl_coefficient": Metric(title="KL coefficient", panel="KL coefficient", only_when_it_varies=True),
    "learning_rate": Metric(title="learning rate", panel="Learning rate", only_when_it_varies=True),
    "samples_per_second": Metric(title="samples/s", unit="rate", panel="Samples per second"),
    "tokens_per_second": Metric(title="tokens/s", unit="rate", panel="Tokens per second", label="sampled"),
    "learner/tokens_per_second": Metric(
        title="learner tokens/s", unit="rate", panel="Tokens per second", label="learner"
    ),
    "learner/memory_bytes": Metric(title="learner memory", unit="bytes", panel="Peak memory of a learner rank"),
    "policy_version": Metric(title="policy version", unit="count"),
    STEP_SECONDS: Metric(title="step time", unit="seconds"),
    **{f"seconds/{phase}": Metric(title=phase, unit="seconds") for phase in PHASES},
}

_NOT_COMPONENTS = ("mean", "std", "min", "max")
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"))


def describe(name: str) -> Metric:
    """How the metric is shown; reward components, pass@k and suites are recognised by their names."""
    family, _, member = name.partition("/")
    if name in METRICS:
        return METRICS[name]
    if family == "reward" and member not in _NOT_COMPONENTS:
        return Metric(title=name, panel="Reward components", label=member)
    if name.startswith("staleness/share_"):
        return Metric(
            title=name,
            unit="share",
            panel="Staleness of trained groups",
            label=f"{member.removeprefix('share_')} versions",
            only_when_it_varies=True,
        )
    if family == ALARM_FAMILY:
        return Metric(title=f"alarm: {member}")
    if family == SUITE_FAMILY:
        suite, _, measured = member.partition("/")
        title = f"{suite}, {measured.replace('_', ' ')}"
        if measured == "reward":
            return Metric(title=title, panel=f"Suite {suite}: reward")
        return Metric(title=title, unit="share", panel=f"Suite {suite}: accuracy", label=measured.replace("_", " "))
    if family == "evaluation":
        return Metric(title=member, unit="share", panel="Held-out accuracy", label=member)
    return Metric(title=name, unit="seconds" if family == "seconds" else "number")


def shown(name: str, value: float) -> str:
    """A metric's value as people read it, in the metric's unit."""
    return written(value, describe(name).unit)


def written(value: float, unit: Unit = "number") -> str:
    """A number as people read it: three significant digits, a percentage, or with a prefix such as k."""
    if not math.isfinite(value):
        return str(value)
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "share":
        return f"{value:.1%}"
    if unit == "seconds":
        return f"{_three_digits(value)} s" if value < 100 else clock(value)
    for size, prefix in _BYTES if unit == "bytes" else _PREFIXES:
        if abs(value) >= size:
            return f"{_three_digits(value / size)}{prefix}"
    return _three_digits(value)


def phase_shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """Each phase's share of the step's time, and what is left of it as `other`.

    Phases that overlap can add up to more than the step; they are scaled to it then.
    """
    timed = {phase: metrics.get(f"seconds/{phase}", math.nan) for phase in PHASES}
    seconds = {phase: value for phase, value in timed.items() if math.isfinite(value)}
    whole = max(sum(seconds.values()), metrics.get(STEP_SECONDS, 0.0))
    if not seconds or whole <= 0:
        return {}
    shares = {phase: value / whole for phase, value in seconds.items()}
    other = 1 - sum(shares.values())
    return shares | ({"other": other} if other > 0.005 else {})


def clock(seconds: float) -> str:
    """A duration as 0:42, 12:05 or 3:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _three_digits(value: float) -> str:
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        return f"{value:.1e}"
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{decimals}f}"
