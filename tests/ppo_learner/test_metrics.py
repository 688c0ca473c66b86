"""The dashboard's numbers of a batch and of a trace that are small enough to be worked by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from ppo_learner.config import LearnerConfig
from ppo_learner.experience import Experience
from ppo_learner.metrics import PolicyAtStart, experience_metrics, group_metrics, importance_metrics, trace_metrics
from ppo_learner.objective import SUMS
from ppo_learner.updates import Trace
from services.contracts.records import Message
from tests.ppo_learner.builders import make_group
from tests.ppo_learner.columns import columns_of, logs, tokens

LN2 = math.log(2)
LEARNER = PolicyAtStart(logprobs=logs(0.5, 0.5, 0.1, 0.4), known=torch.tensor([True, True]))
SECOND = PolicyAtStart(logprobs=logs(1e-9, 1e-9, 0.1, 0.4), known=torch.tensor([False, True]))


def experience_of(**columns: Any) -> Experience:
    """Two completions of two tokens; the learner's policy over the sampler's is 2, 1 and then ¼, 1."""
    return columns_of([2, 2], **{"behaviour_logprobs": logs(0.25, 0.5, 0.4, 0.4)} | columns)


def trace_of(**fields: Any) -> Trace:
    given: dict[str, Any] = {
        "sums": torch.arange(1.0, len(SUMS) + 1, dtype=torch.float64),
        "logprobs": torch.zeros(0),
        "known": torch.zeros(0, dtype=torch.bool),
        "ratio_range": tokens(2 * LN2, math.log(1.5)),
        "mixed_loss": torch.zeros(()),
        "num_updates": 4,
    }
    return Trace(**given | fields)


def test_advantages_are_told_as_they_were_before_whitening() -> None:
    # 1, 2, 3, 6: mean 3, squared distances 4, 1, 0, 9.
    metrics = experience_metrics(experience_of(raw_advantages=tokens(1.0, 2.0, 3.0, 6.0)), LEARNER)
    assert {name: value for name, value in metrics.items() if "advantage" in name} == pytest.approx(
        {"advantage/mean": 3.0, "advantage/std": 3.5**0.5, "advantage/min": 1.0, "advantage/max": 6.0}
    )


def test_the_gap_to_the_sampler_is_that_of_logprobs_whichever_is_larger() -> None:
    metrics = experience_metrics(experience_of(), LEARNER)
    assert metrics["sampler_gap/mean"] == pytest.approx((LN2 + 2 * LN2) / 4)
    assert metrics["sampler_gap/max"] == pytest.approx(2 * LN2)


def test_the_kl_to_the_reference_is_of_tokens_and_of_completions() -> None:
    # π_ref/π is ½, 1 and 2, ¼: k3 is ln 2 − ½, 0, 1 − ln 2 and 2 ln 2 − ¾; k1 sums to ln 2 in either completion.
    metrics = experience_metrics(experience_of(reference_logprobs=logs(0.25, 0.5, 0.2, 0.1)), LEARNER)
    assert metrics["kl/reference"] == pytest.approx((2 * LN2 - 0.25) / 4)
    assert metrics["kl/completion"] == pytest.approx(LN2)
    assert "kl/reference" not in experience_metrics(experience_of(), LEARNER)


def test_a_critic_explains_the_variance_that_its_errors_have_not() -> None:
    # Returns of mean 3 and variance 5; errors −1, 1, 0 and 2 of mean ½ and variance 1.25.
    fit = experience_of(returns=tokens(0.0, 2.0, 4.0, 6.0), values=tokens(1.0, 1.0, 4.0, 4.0))
    metrics = experience_metrics(fit, LEARNER)
    assert metrics["explained_variance"] == pytest.approx(0.75)
    assert (metrics["return/mean"], metrics["value/mean"]) == (3.0, 2.5)
    assert metrics["return/std"] == pytest.approx(5**0.5)


def test_a_critic_that_is_wrong_explains_less_than_nothing_and_one_return_leaves_nothing_to_explain() -> None:
    wrong = experience_of(returns=tokens(0.0, 2.0, 4.0, 6.0), values=tokens(6.0, 4.0, 2.0, 0.0))
    assert experience_metrics(wrong, LEARNER)["explained_variance"] == pytest.approx(-3.0)
    flat = experience_of(returns=tokens(1.0, 1.0, 1.0, 1.0), values=tokens(0.0, 1.0, 2.0, 3.0))
    assert experience_metrics(flat, LEARNER)["explained_variance"] == 0.0


def test_how_far_the_sampler_is_worked_by_hand() -> None:
    # Ratios 2, 1, ¼, 1. KL of the sampler to the learner: 2 − 1 − ln 2 and ¼ − 1 + 2 ln 2, over 4 tokens.
    # Effective sample sizes: 4¼²/(4·6 1/16) of tokens, and 2¼²/(2·4 1/16) of completions, whose ratios are 2 and ¼.
    assert importance_metrics(experience_of(), LEARNER, LearnerConfig()) == pytest.approx(
        {
            "importance/ratio_max": 2.0,
            "importance/ratio_kl": (0.25 + LN2) / 4,
            "importance/ratio_ess": 4.25**2 / (4 * 6.0625),
            "importance/ratio_sequence_ess": 2.25**2 / (2 * 4.0625),
        }
    )


def test_the_weights_of_a_correction_are_told_as_they_were_used() -> None:
    # 1.5 (the cap), 1, ¼, 1: mean 15/16, effective 3¾²/(4·4 5/16).
    config = LearnerConfig(importance_correction="token_tis", importance_cap=1.5)
    metrics = importance_metrics(experience_of(), LEARNER, config)
    assert metrics["importance/mean"] == pytest.approx(15 / 16)
    assert metrics["importance/ess"] == pytest.approx(3.75**2 / (4 * 4.3125))
    assert metrics["importance/clipped"] == 0.25


def test_what_is_not_known_of_the_policy_at_the_start_counts_nowhere() -> None:
    # The ratios of the second completion alone are ¼ and 1, that to the reference is 2 and ¼.
    metrics = experience_metrics(experience_of(reference_logprobs=logs(0.25, 0.5, 0.2, 0.1)), SECOND)
    assert metrics["sampler_gap/mean"] == pytest.approx(LN2)
    assert metrics["sampler_gap/max"] == pytest.approx(2 * LN2)
    assert metrics["kl/reference"] == pytest.approx((LN2 + 0.25) / 2)
    assert metrics["kl/completion"] == pytest.approx(LN2)
    config = LearnerConfig(importance_correction="sequence_tis", importance_cap=1.5)
    assert importance_metrics(experience_of(), SECOND, config) == pytest.approx(
        {
            "importance/ratio_max": 1.0,
            "importance/ratio_kl": (2 * LN2 - 0.75) / 2,
            "importance/ratio_ess": 1.25**2 / (2 * 1.0625),
            "importance/ratio_sequence_ess": 1.0,
            "importance/mean": 0.25,
            "importance/ess": 1.0,
            "importance/clipped": 0.0,
        }
    )


def test_a_trace_gives_means_over_updates_and_the_extremes_of_the_ratio() -> None:
    trace = trace_of(gradient_norms={"policy": [1.0, math.inf, 3.0], "critic": [math.inf]}, num_skipped=2)
    metrics = trace_metrics(trace, has_critic=True, trained_policy=True)
    assert metrics == pytest.approx(
        {name: place / 4 for place, name in enumerate(SUMS, start=1)}
        | {"ratio/min": 0.25, "ratio/max": 1.5, "gradient_norm/policy": 2.0, "gradient_norm/critic": math.inf}
        | {"updates": 4, "updates_skipped": 2, "updates_left_out": 0}
    )


def test_a_trace_tells_nothing_of_what_was_not_trained() -> None:
    of_critic = trace_metrics(trace_of(), has_critic=True, trained_policy=False)
    of_policy = trace_metrics(trace_of(), has_critic=False, trained_policy=True)
    assert [name for name in of_critic if not name.startswith(("value", "updates"))] == []
    assert [name for name in of_policy if name.startswith("value")] == []


def test_the_balance_of_experts_is_that_of_all_updates_together() -> None:
    routing = torch.tensor([[[3.0, 1.0]], [[3.0, 1.0]]])
    metrics = trace_metrics(trace_of(routing=routing), has_critic=False, trained_policy=True)
    assert (metrics["router/balance_loss"], metrics["router/load_max_over_mean"]) == (1.25, 1.5)


def test_turns_are_counted_where_there_are_dialogues() -> None:
    plain, talked = make_group([[0, 1]], [0.0]), make_group([[0, 1], [0, 1]], [0.0, 1.0])
    turns = (Message(role="assistant", content="a"), Message(role="tool", content="b"))
    first, second = talked.group.rollouts
    talked = replace(talked, group=replace(talked.group, rollouts=(replace(first, turns=turns + turns), second)))
    assert "turns/mean" not in group_metrics([plain])
    assert group_metrics([talked])["turns/mean"] == 1.5
