"""The canary check on hand-made logprobs: what agrees, what differs, and what the error says."""

from array import array

import pytest

from rollout_workers.canary import check_canary
from services.contracts.errors import CanaryMismatch
from services.contracts.records import Canary

CANARY = Canary(
    sequences=(array("i", [1, 2, 3]), array("i", [4, 5])),
    logprobs=(array("f", [-1.0, -2.0]), array("f", [-3.0])),
    tolerance=0.11,
)


def test_the_error_is_the_mean_absolute_difference_over_all_tokens() -> None:
    assert check_canary(CANARY, [[-1.0, -2.2], [-2.9]], version=1) == pytest.approx(0.1, rel=1e-6)


def test_a_difference_above_the_tolerance_is_refused_with_its_numbers_and_causes() -> None:
    with pytest.raises(CanaryMismatch, match=r"version 7: .* of 3 canary tokens .* 0\.2 on average and 0\.6 at most"):
        check_canary(CANARY, [[-1.0, -2.6], [-3.0]], version=7)


def test_differences_of_opposite_sign_do_not_cancel() -> None:
    with pytest.raises(CanaryMismatch):
        check_canary(CANARY, [[-0.5, -2.5], [-3.0]], version=1)


def test_what_is_not_a_number_never_passes() -> None:
    with pytest.raises(CanaryMismatch):
        check_canary(CANARY, [[-1.0, float("nan")], [-3.0]], version=1)


def test_a_canary_without_tokens_proves_nothing_and_is_refused() -> None:
    with pytest.raises(CanaryMismatch):
        check_canary(Canary(sequences=(), logprobs=(), tolerance=1.0), [], version=1)
