"""Speed-ups that others have published for asynchronous training, and what the simulator makes of their settings.

A case takes from its source the seconds of a synchronous step and the split of the GPUs; the time of an iteration of
one sequence, the mean length and, for AReaL, the share of generation and the split are assumptions, named here. The
engine's other constant is fitted to the synchronous generation, so that only the asynchronous step is a prediction.
It must not fit anything to the asynchronous step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.simulated_machine import Decoding
from benchmarks.simulation import Setting, lognormal, simulate
from benchmarks.sync_schemes import Network

ONE_STEP_OFF = "verl docs/advance/one_step_off.md (2025-07-17), DAPO, Qwen2.5-Math-7B, H20"
FULLY_ASYNC = "verl docs/advance/fully_async.md (2025-10-18), DAPO, Qwen2.5-Math-7B, H20, first 400 steps"
AREAL = "AReaL blog/AReaL_v0_3.md, table 2, and arXiv 2505.24298: 1,000 PPO steps, H800"

MEAN_OVER_CAP = (1 / 16, 1 / 8, 1 / 4)
"""Mean completion over the longest allowed: low, assumed, high. No source gives it; lengths are lognormal, sigma 1."""
AREAL_GENERATION_SHARE = 0.7
"""Of AReaL's synchronous step; what verl's page says of DAPO 32B, since AReaL's gives no parts."""
AREAL_SPLITS = (0.25, 0.5, 0.75)
"""Shares of the GPUs for rollouts, of which the best is taken; AReaL balances them and its page does not say how."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row of a published table.

    Attributes:
        generation_s: of the synchronous step, the seconds of sampling alone.
        learner_s: of the synchronous step, what asynchronous training still computes.
        other_s: of the synchronous step, what remains serial in both.
        dropped_s: of the synchronous step, what asynchronous training leaves out (logprobs of the old policy).
        rollout_gpus: of the asynchronous run; None lets the simulator choose the best of `AREAL_SPLITS`.
        async_learner_s: seconds of the learner in the asynchronous run, where they are published.
        iteration_s: an iteration of one sequence: reading the weights, and launching kernels. Assumed.
    """

    name: str
    source: str
    gpus: int
    generation_s: float
    learner_s: float
    other_s: float
    dropped_s: float = 0.0
    rollout_gpus: int | None
    async_step_s: float
    async_learner_s: float | None = None
    max_staleness: int
    in_flight: bool
    max_tokens: int
    iteration_s: float

    @property
    def sync_step_s(self) -> float:
        return self.generation_s + self.learner_s + self.other_s + self.dropped_s

    @property
    def published(self) -> float:
        return self.sync_step_s / self.async_step_s


def _one_step_off(
    name: str, step: float, sampling: float, learner: float, *, becomes: tuple[float, float], max_tokens: int
) -> Case:
    return Case(
        name=name, source=ONE_STEP_OFF, gpus=16, generation_s=sampling, learner_s=learner,
        other_s=step - sampling - learner, rollout_gpus=4, async_step_s=becomes[0], async_learner_s=becomes[1],
        max_staleness=1, in_flight=False, max_tokens=max_tokens, iteration_s=0.008,
    )  # fmt: skip


def _fully_async(
    gpus: int, step: float, sampling: float, logprobs: float, update: float, *, becomes: tuple[float, float]
) -> Case:
    return Case(
        name=f"verl fully async, {gpus // 2}:{gpus // 2} GPUs", source=FULLY_ASYNC, gpus=gpus, generation_s=sampling,
        learner_s=update, dropped_s=logprobs, other_s=step - sampling - logprobs - update, rollout_gpus=gpus // 2,
        async_step_s=becomes[0], async_learner_s=becomes[1], max_staleness=1, in_flight=True, max_tokens=28 * 1024,
        iteration_s=0.008,
    )  # fmt: skip


def _areal(name: str, nodes: int, sync_hours: float, async_hours: float, iteration_s: float) -> Case:
    step = 3.6 * sync_hours
    return Case(
        name=name, source=AREAL, gpus=8 * nodes, generation_s=AREAL_GENERATION_SHARE * step,
        learner_s=(1 - AREAL_GENERATION_SHARE) * step, other_s=0.0, rollout_gpus=None, async_step_s=3.6 * async_hours,
        max_staleness=4, in_flight=True, max_tokens=27 * 1024, iteration_s=iteration_s,
    )  # fmt: skip


CASES = (
    _one_step_off(
        "verl one step off, FSDP2, 4:12 GPUs", 749, 247, 88 + 286, becomes=(520, 108 + 337), max_tokens=20_480
    ),
    _one_step_off(
        "verl one step off, Megatron, 4:12 GPUs", 699, 162, 119 + 344, becomes=(566, 120 + 347), max_tokens=8_192
    ),
    _fully_async(32, 790.10, 357.41, 107.71, 313.81, becomes=(294.77, 269.80)),
    _fully_async(64, 365.28, 150.72, 70.26, 133.41, becomes=(189.26, 156.98)),
    _fully_async(128, 356.30, 177.85, 53.92, 113.81, becomes=(150.63, 113.16)),
    _areal("AReaL 1.5B, 16 nodes", 16, 41.0, 14.8, 0.003),
    _areal("AReaL 7B, 24 nodes", 24, 57.7, 25.4, 0.006),
)
"""Synchronous step, its parts, and what the step and the learner become: seconds, as published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Simulated speed-ups of one case: at the assumed mean length, and the lowest and highest over all of them."""

    case: Case
    speed_up: float
    lowest: float
    highest: float
    with_published_learner: float | None


def predict(case: Case, *, prompts_per_step: int = 512, samples_per_prompt: int = 16) -> Prediction:
    """Simulate the case with a learner that scales with its GPUs, and with the learner's published time."""
    sizes = {"prompts_per_step": prompts_per_step, "samples_per_prompt": samples_per_prompt}
    fitted = [fit_generation(case, share, **sizes) for share in MEAN_OVER_CAP]
    low, assumed, high = (_speed_up(case, setting, None) for setting in fitted)
    known = case.async_learner_s
    return Prediction(
        case=case,
        speed_up=assumed,
        lowest=min(low, assumed, high),
        highest=max(low, assumed, high),
        with_published_learner=None if known is None else _speed_up(case, fitted[1], known),
    )


def fit_generation(case: Case, mean_over_cap: float, *, prompts_per_step: int, samples_per_prompt: int) -> Setting:
    """The synchronous setting whose generation takes the published seconds."""
    # No worker is slower with one sequence than the longest completion allows.
    iteration_s = min(case.iteration_s, 0.9 * case.generation_s / case.max_tokens)
    bare = Setting(
        num_workers=case.gpus, prompts_per_step=prompts_per_step, samples_per_prompt=samples_per_prompt,
        max_staleness=0, lengths=lognormal(mean_over_cap * case.max_tokens, case.max_tokens),
        decoding=Decoding(fixed_s=iteration_s, per_sequence_s=0.0), reward_s=0.0, learner_s=0.0, publish_s=0.0,
        load_s=0.0, scheme="shared pull",
        network=Network(model_bytes=15e9, workers_per_node=8, link=50e9, uplink=50e9, memory=50e9, call_s=0.0),
    )  # fmt: skip

    def with_slope(slope: float) -> Setting:
        return replace(bare, decoding=replace(bare.decoding, per_sequence_s=slope))

    def seconds(slope: float) -> float:
        return simulate(with_slope(slope), num_steps=5).step_s

    # The seconds grow almost linearly with the slope: a few secant steps are plenty.
    (low, at_low), slope = (0.0, seconds(0.0)), 1e-5
    for _ in range(4):
        at_slope = seconds(slope)
        if math.isclose(at_slope, case.generation_s, rel_tol=0.005):
            break
        steepness = (at_slope - at_low) / (slope - low)
        low, at_low, slope = slope, at_slope, max(0.0, slope + (case.generation_s - at_slope) / steepness)
    return with_slope(slope)


def _speed_up(case: Case, fitted: Setting, learner_s: float | None) -> float:
    splits: Sequence[int] = [case.rollout_gpus] if case.rollout_gpus else [round(s * case.gpus) for s in AREAL_SPLITS]
    steps = []
    for rollout_gpus in splits:
        scaled = case.learner_s * case.gpus / (case.gpus - rollout_gpus)
        setting = replace(
            fitted, num_workers=rollout_gpus, max_staleness=case.max_staleness, in_flight=case.in_flight,
            learner_s=scaled if learner_s is None else learner_s, publish_s=case.other_s,
        )  # fmt: skip
        steps.append(simulate(setting, num_steps=9).step_s)
    return case.sync_step_s / min(steps)
