"""The policy objective with three policies: hand-worked numbers, NumPy, finite differences, and the true gradient.

The last part enumerates every completion of a tiny autoregressive policy, so that expectations are sums and a biased
estimate shows as such.
"""

import itertools
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppo_learner.config import LearnerConfig
from ppo_learner.importance import IMPORTANCE_CORRECTIONS
from ppo_learner.objective import policy_objective
from tests.ppo_learner import numpy_reference
from tests.ppo_learner.columns import columns_of, logs, micro_batch_of

LENGTHS = [4, 1, 7]
VOCABULARY = 3
CORRECTED = [name for name in IMPORTANCE_CORRECTIONS if name != "none"]


def loss_of(
    logprobs: Tensor,
    behaviour: Tensor,
    advantages: Tensor,
    *,
    start: Tensor | None = None,
    staleness: list[int] | None = None,
    lengths: list[int] | None = None,
    weights: Tensor | None = None,
    **config: Any,
) -> Tensor:
    """The objective's loss on one micro-batch of every token, each counting 1 unless `weights` says otherwise."""
    lengths = lengths or [1] * len(logprobs)
    experience = columns_of(
        lengths,
        advantages=advantages,
        behaviour_logprobs=behaviour,
        staleness=torch.tensor(staleness or [1] * len(logprobs)),
        start_logprobs=start,
    )
    counts = torch.ones_like(logprobs) if weights is None else weights
    settings = LearnerConfig.model_validate({"algorithm": "grpo"} | config)
    batch, entropy = micro_batch_of(lengths), torch.zeros_like(logprobs)
    return policy_objective(logprobs, entropy, batch, experience, counts, settings, kl_coefficient=0.0).loss


def test_decoupled_ppo_worked_by_hand() -> None:
    # μ 0.2, π_prox 0.4, π_θ 0.6: weight 2, ratio 1.5. Good news is clipped at 1.2, bad news is not.
    behaviour, start, new = logs(0.2, 0.2), logs(0.4, 0.4), logs(0.6, 0.6).requires_grad_()
    advantages = torch.tensor([2.0, -2.0], dtype=torch.float64)
    loss = loss_of(new, behaviour, advantages, start=start, importance_correction="token_tis")
    assert loss.item() == pytest.approx(-2 * 1.2 * 2 + 2 * 1.5 * 2)
    loss.backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.tensor([0.0, 2 * 1.5 * 2], dtype=torch.float64))


def test_corrected_reinforce_worked_by_hand() -> None:
    # π/μ is 2 and ½, of one sequence: token weights 1.5 (the cap) and ½, sequence weight 1.
    behaviour, new = logs(0.2, 0.8), logs(0.4, 0.4).requires_grad_()
    advantages = torch.tensor([1.0, 1.0], dtype=torch.float64)
    for correction, weights in {"token_tis": (1.5, 0.5), "sequence_tis": (1.0, 1.0)}.items():
        loss = loss_of(
            new,
            behaviour,
            advantages,
            lengths=[2],
            algorithm="rloo",
            importance_correction=correction,
            importance_cap=1.5,
        )
        (gradient,) = torch.autograd.grad(loss, new)
        torch.testing.assert_close(gradient, -torch.tensor(weights, dtype=torch.float64))


def test_an_interpolated_proximal_policy_worked_by_hand() -> None:
    # μ 0.1, π_θ 0.4, three versions old: π_prox = 0.1^⅓·0.4^⅔, so the ratio is 4^⅓ and the weight 4^⅔.
    for staleness, proximal_share in {1: 0.0, 2: 1 / 2, 3: 2 / 3}.items():
        loss = loss_of(
            logs(0.4),
            logs(0.1),
            torch.tensor([-1.0], dtype=torch.float64),
            staleness=[staleness],
            proximal="interpolated",
            importance_correction="token_tis",
            importance_cap=100.0,
        )
        weight, ratio = 4**proximal_share, 4 ** (1 - proximal_share)
        assert float(loss) == pytest.approx(weight * ratio)


@pytest.mark.parametrize("proximal", ["recomputed", "interpolated"])
@pytest.mark.parametrize("correction", CORRECTED)
def test_the_decoupled_loss_agrees_with_numpy(correction: str, proximal: str) -> None:
    torch.manual_seed(0)
    new, start, behaviour = 0.5 * torch.randn(3, sum(LENGTHS), dtype=torch.float64)
    advantages = torch.randn(sum(LENGTHS), dtype=torch.float64)
    token_versions = [5, 3, 5, 1] * 3
    found = loss_of(
        new,
        behaviour,
        advantages,
        start=start,
        staleness=[6 - version for version in token_versions],
        lengths=LENGTHS,
        proximal=proximal,
        importance_correction=correction,
    )
    anchor = start.numpy()
    if proximal == "interpolated":
        anchor = numpy_reference.interpolated(behaviour.numpy(), new.numpy(), token_versions, version=5)
    ratios = np.split(np.exp(anchor - behaviour.numpy()), np.cumsum(LENGTHS)[:-1])
    weights = np.concatenate(numpy_reference.importance_weights(correction, ratios, cap=2.0, low=0.5, high=5.0))
    losses = numpy_reference.ppo_clip(new.numpy(), anchor, advantages.numpy(), 0.2, 0.2)
    assert float(found) == pytest.approx(float((weights * losses).sum()), rel=1e-12)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("correction", IMPORTANCE_CORRECTIONS)
def test_the_objective_has_the_gradient_of_finite_differences(correction: str, algorithm: str) -> None:
    torch.manual_seed(1)
    new = (0.5 * torch.randn(sum(LENGTHS), dtype=torch.float64)).requires_grad_()
    start, behaviour, advantages = 0.5 * torch.randn(3, sum(LENGTHS), dtype=torch.float64)
    options = {"start": start, "lengths": LENGTHS, "algorithm": algorithm, "importance_correction": correction}
    assert torch.autograd.gradcheck(lambda logprobs: loss_of(logprobs, behaviour, advantages, **options), (new,))


def test_no_gradient_flows_through_an_interpolated_proximal_policy() -> None:
    torch.manual_seed(2)
    new = (0.3 * torch.randn(12, dtype=torch.float64)).requires_grad_()
    behaviour, advantages = torch.randn(2, 12, dtype=torch.float64)
    staleness = [1, 2, 4, 3] * 3
    corrected = {"importance_correction": "token_tis", "lengths": LENGTHS}
    loss = loss_of(new, behaviour, advantages, staleness=staleness, proximal="interpolated", **corrected)
    frozen = torch.lerp(behaviour, new.detach(), 1 - 1 / torch.tensor(staleness).double())
    expected = loss_of(new, behaviour, advantages, start=frozen, **corrected)
    torch.testing.assert_close(torch.autograd.grad(loss, new), torch.autograd.grad(expected, new))


@pytest.mark.parametrize("proximal", ["recomputed", "interpolated"])
@pytest.mark.parametrize("correction", CORRECTED)
def test_where_sampler_and_learner_agree_no_correction_changes_the_loss(correction: str, proximal: str) -> None:
    torch.manual_seed(3)
    new = torch.randn(12, requires_grad=True)
    advantages = torch.randn(12)
    plain = loss_of(new, new.detach(), advantages, lengths=LENGTHS)
    corrected = loss_of(
        new,
        new.detach(),
        advantages,
        lengths=LENGTHS,
        staleness=[1, 2, 3] * 4,
        proximal=proximal,
        importance_correction=correction,
    )
    assert torch.equal(corrected, plain)
    assert torch.equal(*torch.autograd.grad(corrected, new), *torch.autograd.grad(plain, new))


class Toy:
    """Every completion of a policy whose next token depends on place and last token, with a random reward for each."""

    def __init__(self, seed: int, *, drift: float, num_tokens: int = 4) -> None:
        draw = torch.Generator().manual_seed(seed)
        shape = (num_tokens, VOCABULARY, VOCABULARY)  # place, last token, next token
        self.logits = torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
        self.completions = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=num_tokens)))
        self.rewards = torch.randn(len(self.completions), generator=draw, dtype=torch.float64)
        stale = self.logits.detach() + drift * torch.randn(shape, generator=draw, dtype=torch.float64)
        self.behaviour = self.logprobs(stale)

    def logprobs(self, logits: Tensor) -> Tensor:
        """(completions, tokens)."""
        last = torch.cat([torch.zeros_like(self.completions[:, :1]), self.completions[:, :-1]], dim=1)
        return torch.log_softmax(logits, dim=-1)[torch.arange(len(logits)), last, self.completions]

    def true_gradient(self) -> Tensor:
        expected_reward = (self.logprobs(self.logits).sum(dim=1).exp() * self.rewards).sum()
        return torch.autograd.grad(-expected_reward, self.logits)[0]

    def gradient(self, shares: Tensor, **config: Any) -> Tensor:
        """What the objective makes of completions of the stale policy, of which each has its share."""
        num_tokens = self.completions.shape[1]
        loss = loss_of(
            self.logprobs(self.logits).flatten(),
            self.behaviour.flatten(),
            self.rewards.repeat_interleave(num_tokens),
            lengths=[num_tokens] * len(self.rewards),
            weights=shares.repeat_interleave(num_tokens),
            **config,
        )
        return torch.autograd.grad(loss, self.logits)[0]

    def error(self, shares: Tensor, **config: Any) -> float:
        truth = self.true_gradient()
        return float((self.gradient(shares, **config) - truth).norm() / truth.norm())


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_untruncated_sequence_ratio_gives_the_true_gradient_of_stale_samples(algorithm: str) -> None:
    toy = Toy(0, drift=0.7)
    expectation = toy.behaviour.sum(dim=1).exp()
    options = {"algorithm": algorithm, "importance_correction": "sequence_tis", "importance_cap": 1e6}
    assert toy.error(expectation, **options) < 1e-12
    assert toy.error(expectation, algorithm=algorithm) > 0.1


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("correction", "share"), [("token_tis", 0.95), ("sequence_tis", 0.4), ("sequence_mis", 0.9), ("icepop", 0.95)]
)
def test_every_correction_brings_the_expected_gradient_nearer_to_the_true_one(
    correction: str, share: float, algorithm: str
) -> None:
    # With the reward at the end, whole completions are what has to be corrected: tokens alone gain little.
    plain, corrected = [], []
    for seed in range(40):
        toy = Toy(seed, drift=0.4)
        expectation = toy.behaviour.sum(dim=1).exp()
        plain.append(toy.error(expectation, algorithm=algorithm))
        corrected.append(toy.error(expectation, algorithm=algorithm, importance_correction=correction))
    assert median(corrected) < share * median(plain)


@pytest.mark.parametrize("correction", CORRECTED)
def test_on_a_bandit_every_correction_pays_for_a_batch_of_samples_too(correction: str) -> None:
    draw = torch.Generator().manual_seed(0)
    plain, corrected = [], []
    for seed in range(40):
        toy = Toy(seed, drift=0.7, num_tokens=1)
        drawn = torch.multinomial(toy.behaviour.sum(dim=1).exp(), 2000, replacement=True, generator=draw)
        shares = torch.bincount(drawn, minlength=len(toy.rewards)).double() / len(drawn)
        plain.append(toy.error(shares, algorithm="rloo"))
        corrected.append(toy.error(shares, algorithm="rloo", importance_correction=correction))
    assert median(corrected) < 0.5 * median(plain)
