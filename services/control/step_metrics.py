"""One finished step as the plain numbers that are written down, and the run's totals as the summary's numbers.

It must not know where numbers go. Units: seconds, tokens, samples; shares of 1.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from services.contracts.records import Json, ScoredGroup, SyncReceipt
from services.control.catalogue import PHASES
from services.control.controller import Step


def step_metrics(step: Step, *, num_workers: int) -> dict[str, float]:
    """The learner's own metrics, and beside them throughput, staleness, sync and the seconds of each phase."""
    rollouts = [rollout for group in step.sampled for rollout in group.group.rollouts]
    histogram = Counter(step.staleness)
    num_tokens = sum(rollout.num_completion_tokens for rollout in rollouts)
    return {
        **step.report.metrics,
        **{f"seconds/{phase}": seconds for phase, seconds in step.seconds.items()},
        "samples_per_second": len(rollouts) / step.seconds["step"],
        "tokens_per_second": num_tokens / step.seconds["step"],
        "policy_version": step.number,
        "staleness/mean": fmean(step.staleness),
        "staleness/max": max(step.staleness),
        **{f"staleness/share_{stale}": count / len(step.staleness) for stale, count in histogram.items()},
        "reward_versions": len({group.reward_version for group in step.groups}),
        "learner_wait": step.learner_wait,
        "rollout_workers": num_workers,
        **_baseline_metrics(step.sampled),
        **_sync_metrics(step.receipts),
    }


def _baseline_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """The mean reward of the greedy answers; nothing where none were sampled."""
    baselines = [group.baseline for group in groups if group.baseline is not None]
    return {"reward_of_greedy": fmean(baselines)} if baselines else {}


def _sync_metrics(receipts: Sequence[SyncReceipt]) -> dict[str, float]:
    """Of the workers that took up new weights since the step before; nothing where none did."""
    if not receipts:
        return {}
    return {
        "sync/canary_error": fmean(receipt.canary_error for receipt in receipts),
        "sync/load_seconds": max(receipt.load_s for receipt in receipts),
        "sync/stall_seconds": max(receipt.stall_s for receipt in receipts),
    }


@dataclass
class RunTotals:
    """Adds up what a run's summary says of its steps.

    Args:
        started: `time.monotonic()` when the command began.
        seconds_before: time spent before a resume.
        num_samples: completions sampled, also before a resume.
    """

    started: float
    seconds_before: float = 0.0
    num_samples: int = 0
    seconds_to_first_step: float | None = None
    _seconds: dict[str, list[float]] = field(default_factory=dict)
    _parts: list[float] = field(default_factory=list)
    _gaps: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def add(self, step: Step) -> None:
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = time.monotonic() - self.started - step.seconds["step"]
        self.num_samples += sum(len(group.group.rollouts) for group in step.sampled)
        self._parts.append(sum(step.seconds.get(phase, 0.0) for phase in PHASES))
        self._gaps.append(step.report.metrics.get("sampler_gap/mean", 0.0))
        for phase, seconds in step.seconds.items():
            self._seconds.setdefault(phase, []).append(seconds)

    def summary(self) -> dict[str, Json]:
        """Medians over the steps; `step_over_parts` is a step's time over the sum of its phases."""
        if not self._parts:
            return {"num_samples": 0, "seconds": self.seconds}
        ratios = [step / parts for step, parts in zip(self._seconds["step"], self._parts, strict=True)]
        return {
            "num_samples": self.num_samples,
            "seconds": self.seconds,
            "seconds_to_first_step": self.seconds_to_first_step,
            "median_seconds": {phase: median(seconds) for phase, seconds in self._seconds.items()},
            "step_over_parts": median(ratios),
            "sampler_gap_mean": fmean(self._gaps),
            "sampler_gap_worst_step": max(self._gaps),
        }
