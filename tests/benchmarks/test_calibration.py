"""The simulator's fit: constants that are known come back, and a published case is fitted to its synchronous step."""

from dataclasses import replace

import pytest

from benchmarks.calibration import Calibration, MeasuredRun, fit, predictions, uncapped_mean
from benchmarks.published import CASES, fit_generation
from benchmarks.simulation import simulate

FIXED_S, PER_SEQUENCE_S, LEARNER_S, PER_TOKEN_S, MAX_TOKENS = 0.005, 0.0002, 0.3, 0.0005, 192


def measured(*, num_workers: int = 1, prompts_per_step: int = 32, max_staleness: int = 0) -> MeasuredRun:
    tokens = prompts_per_step * 8 * 90.0
    sampling_s = MAX_TOKENS * FIXED_S + tokens * PER_SEQUENCE_S
    learning_s = LEARNER_S + tokens * PER_TOKEN_S
    return MeasuredRun(
        num_workers=num_workers, max_staleness=max_staleness, prompts_per_step=prompts_per_step,
        step_s=sampling_s + learning_s + 0.15, sampling_s=sampling_s, learning_s=learning_s, sync_s=0.1, stall_s=0.03,
        tokens=tokens,
    )  # fmt: skip


def calibration(*runs: MeasuredRun) -> Calibration:
    return Calibration(cores=2, model_bytes=13_000_000, samples_per_prompt=8, max_tokens=MAX_TOKENS, runs=runs)


def test_the_constants_behind_two_runs_of_one_worker_are_found() -> None:
    setting = fit(calibration(measured(prompts_per_step=8), measured()))
    assert setting.decoding.fixed_s == pytest.approx(FIXED_S)
    assert setting.decoding.per_sequence_s == pytest.approx(PER_SEQUENCE_S)
    assert setting.learner_s == pytest.approx(LEARNER_S)
    assert setting.learner_per_token_s == pytest.approx(PER_TOKEN_S)
    assert setting.reward_s == pytest.approx(0.05)


def test_predictions_repeat_what_was_fitted_and_speed_up_with_a_second_worker() -> None:
    pairs = predictions(calibration(measured(num_workers=2), measured(), measured(prompts_per_step=8)))
    (small, simulated_small), (large, simulated_large), (_, two_workers) = pairs
    assert simulated_small.step_s == pytest.approx(small.step_s, rel=0.15)
    assert simulated_large.step_s == pytest.approx(large.step_s, rel=0.05)
    assert simulated_large.sync_s == pytest.approx(large.sync_s, rel=0.05)
    assert two_workers.step_s < 0.95 * simulated_large.step_s


def test_one_batch_size_alone_is_refused() -> None:
    with pytest.raises(SystemExit, match="two with different prompts_per_step"):
        fit(calibration(measured()))


def test_lengths_that_are_cut_keep_the_measured_mean() -> None:
    assert uncapped_mean(90.0, 10**6) == pytest.approx(90.0, rel=1e-3)
    assert uncapped_mean(90.0, 192) > 100.0


def test_a_published_case_is_fitted_to_its_synchronous_generation() -> None:
    case = replace(CASES[0], gpus=4, generation_s=60.0, max_tokens=2048)
    setting = fit_generation(case, 1 / 8, prompts_per_step=16, samples_per_prompt=4)
    assert simulate(setting, num_steps=5).step_s == pytest.approx(60.0, rel=0.01)
