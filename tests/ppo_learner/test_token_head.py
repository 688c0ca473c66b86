"""Logprobs and entropies from hidden states: against NumPy, in pieces, with the quirks of some model families."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ppo_learner import token_head
from ppo_learner.token_head import TokenHead
from tests.ppo_learner.numpy_reference import log_softmax


def make_head(temperature: float = 1.0, dtype: torch.dtype = torch.float32, **config: float) -> TokenHead:
    torch.manual_seed(0)
    return TokenHead(nn.Linear(8, 30, bias=False, dtype=dtype), SimpleNamespace(**config), temperature=temperature)


STATES = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(12)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, lambda z: z),
        ({"logit_scale": 0.25}, lambda z: z * 0.25),
        ({"logits_scaling": 8.0}, lambda z: z / 8.0),
        ({"final_logit_softcapping": 2.0}, lambda z: np.tanh(z / 2) * 2),
    ],
    ids=["plain", "cohere", "granite", "gemma"],
)
def test_logprobs_and_entropy_are_those_of_the_tempered_distribution(config, expected) -> None:
    head = make_head(temperature=0.7, **config)
    logprobs, entropy = head(STATES, TARGETS)
    logits = STATES.double().numpy() @ head.weight.detach().double().numpy().T
    table = log_softmax(expected(logits) / 0.7)
    np.testing.assert_allclose(logprobs.detach().numpy(), table[np.arange(12), np.arange(12)], rtol=1e-5)
    np.testing.assert_allclose(entropy.numpy(), -(np.exp(table) * table).sum(axis=1), rtol=1e-5)


def test_the_temperature_can_be_set_for_one_call() -> None:
    found = make_head(temperature=0.7)(STATES, TARGETS, temperature=1.0)[0]
    torch.testing.assert_close(found, make_head()(STATES, TARGETS)[0])


def test_pieces_give_the_values_and_gradients_of_the_whole() -> None:
    results = []
    for limit in (token_head.LOGIT_ELEMENTS, 3 * 30):
        head, states = make_head(), STATES.clone().requires_grad_()
        head.logit_elements = limit
        logprobs, entropy = head(states, TARGETS, entropy_gradient=True)
        (logprobs.sum() + 0.1 * entropy.sum()).backward()
        results.append((logprobs, entropy, states.grad, head.weight.grad))
    for whole, pieced in zip(*results, strict=True):
        torch.testing.assert_close(pieced, whole)


def test_the_gradient_is_that_of_finite_differences() -> None:
    head = make_head(dtype=torch.float64, final_logit_softcapping=3.0).double()
    head.logit_elements = 60

    def outcomes(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return head(states, TARGETS[:4], entropy_gradient=True)

    # The head computes in float32, so the step and the tolerance are coarse.
    states = STATES[:4].double().requires_grad_()
    assert torch.autograd.gradcheck(outcomes, (states,), eps=1e-2, atol=1e-2)


def test_without_entropy_gradient_only_logprobs_reach_the_weights() -> None:
    head = make_head()
    _, entropy = head(STATES, TARGETS)
    assert not entropy.requires_grad


def test_no_tokens_give_no_outcomes_but_a_gradient_of_zero() -> None:
    head = make_head()
    logprobs, entropy = head(STATES[:0], TARGETS[:0])
    logprobs.sum().backward()
    assert len(logprobs) == len(entropy) == 0
    assert head.weight.grad is not None and not head.weight.grad.any()
