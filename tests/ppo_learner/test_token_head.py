"""Logprobs and entropies from hidden states: against NumPy, in pieces, with the quirks of some model families."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ppo_learner import token_head
from ppo_learner.token_head import TokenHead
from tests.ppo_learner.largest_tensor import LargestTensor
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


@pytest.mark.parametrize("tokens_at_once", [256, 64, 1])
def test_in_bfloat16_a_gradient_of_many_pieces_is_off_by_rounding_alone(tokens_at_once: int) -> None:
    torch.manual_seed(0)
    weight, states, targets = torch.randn(50, 16) / 4, torch.randn(256, 16), torch.randint(50, (256,))
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        output = nn.Linear(16, 50, dtype=dtype)
        output.weight.data, output.bias.data = weight.bfloat16().to(dtype), torch.zeros(50, dtype=dtype)
        head = TokenHead(output, SimpleNamespace(), temperature=1.0)
        head.logit_elements = 50 * tokens_at_once
        head(states.bfloat16().to(dtype), targets)[0].sum().backward()
        gradients.append([output.weight.grad, output.bias.grad])
    for exact, found in zip(*gradients, strict=True):
        assert found.dtype == torch.bfloat16
        # Half a unit in bfloat16's last place, here and there; added up in bfloat16, 256 pieces are off by 2 %.
        assert float((found - exact).norm()) < 2**-8 * float(exact.norm())


@pytest.mark.parametrize("limit", [60, 10_000], ids=["pieces", "whole"])
@pytest.mark.parametrize("options", [{"entropy_gradient": False}, {"entropy_gradient": True}], ids=str)
@pytest.mark.parametrize("quirks", [{}, {"final_logit_softcapping": 3.0}], ids=str)
def test_the_gradient_is_that_of_finite_differences(
    quirks: dict[str, float], options: dict[str, bool], limit: int
) -> None:
    torch.manual_seed(0)
    output = nn.Linear(8, 30, dtype=torch.float64)
    head = TokenHead(output, SimpleNamespace(logit_scale=0.5, **quirks), temperature=0.7)
    head.logit_elements = limit

    def outcomes(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        here = torch.func.functional_call(head, {"weight": weight, "bias": bias}, (states, TARGETS[:4]), options)
        return here if options["entropy_gradient"] else here[:1]  # type: ignore[no-any-return]

    states = STATES[:4].double().requires_grad_()
    assert torch.autograd.gradcheck(outcomes, (states, output.weight, output.bias))


def test_without_entropy_gradient_only_logprobs_reach_the_weights() -> None:
    head = make_head()
    logprobs, entropy = head(STATES, TARGETS)
    assert logprobs.requires_grad and not entropy.requires_grad


def test_an_entropy_that_nobody_asks_for_is_0_and_changes_no_gradient() -> None:
    gradients = []
    for entropy in (True, False):
        head = make_head()
        logprobs, entropies = head(STATES, TARGETS, entropy=entropy)
        logprobs.sum().backward()
        gradients.append(head.weight.grad)
    assert not entropies.any()
    assert torch.equal(*gradients)


def test_a_frozen_head_passes_gradients_on_and_gets_none() -> None:
    head, states = make_head(), STATES.clone().requires_grad_()
    head.weight.requires_grad_(False)
    head(states, TARGETS)[0].sum().backward()
    assert head.weight.grad is None and states.grad is not None and states.grad.any()


@pytest.mark.parametrize("options", [{}, {"entropy_gradient": True}], ids=str)
def test_a_vocabulary_of_150_000_never_shows_as_logits_of_all_tokens(options: dict[str, bool]) -> None:
    vocabulary, num_tokens = 150_000, 600
    head = TokenHead(nn.Linear(4, vocabulary, bias=False), SimpleNamespace(), temperature=1.0)
    head.logit_elements = 2**24
    states = torch.randn(num_tokens, 4, requires_grad=True)
    with LargestTensor() as largest:
        logprobs, entropy = head(states, torch.arange(num_tokens), **options)
        (logprobs.sum() + (entropy.sum() if options else 0.0)).backward()
    assert vocabulary * 100 < largest.elements <= 2**24 < vocabulary * num_tokens


def test_in_bfloat16_logprobs_are_off_by_the_rounding_of_inputs_and_logits_alone() -> None:
    torch.manual_seed(0)
    weight, states = torch.randn(2000, 64) / 4, torch.randn(300, 64)
    logprobs = []
    for dtype in (torch.float32, torch.bfloat16):
        output = nn.Linear(64, 2000, bias=False, dtype=dtype)
        # The same numbers in both formats, so that only the head's own rounding is left.
        output.weight.data = weight.bfloat16().to(dtype)
        head = TokenHead(output, SimpleNamespace(), temperature=1.0)
        logprobs.append(head(states.bfloat16().to(dtype), torch.arange(300))[0].detach())
    largest_logit = float((states @ weight.T).abs().max())
    assert logprobs[1].dtype == torch.float32
    # Half a unit in bfloat16's last place on the target's logit, and less on the average over the vocabulary.
    error = (logprobs[0] - logprobs[1]).abs()
    assert float(error.max()) < 2 * largest_logit * 2**-9
    assert float(error.mean()) < 0.25 * largest_logit * 2**-9


def test_no_tokens_give_no_outcomes_but_a_gradient_of_zero() -> None:
    head = make_head()
    logprobs, entropy = head(STATES[:0], TARGETS[:0])
    logprobs.sum().backward()
    assert len(logprobs) == len(entropy) == 0
    assert head.weight.grad is not None and not head.weight.grad.any()
