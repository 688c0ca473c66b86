"""Logprob and entropy of given tokens as one differentiable step, whose backward pass is written out.

It must not know models. Invariants: logits are float32 before the softmax; between the passes there are two numbers a
token, and the logits only where they fit one piece, so that none is computed twice without need. What automatic
differentiation would keep are several copies of each piece. N tokens, n tokens of a piece, H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitShape:
    """How logits come from states: z = c·tanh(s·(W h + b) / c) / T, without the tanh where there is no cap c.

    Attributes:
        scale: s.
        soft_cap: c.
        temperature: T.
        tokens_at_once: most tokens of a piece.
        entropy: whether entropies are asked for; they are 0 without.
        entropy_gradient: whether they are trained on.
    """

    scale: float
    soft_cap: float | None
    temperature: float
    tokens_at_once: int
    entropy: bool
    entropy_gradient: bool

    def of(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(n, V) logits, in float32 or finer."""
        logits = functional.linear(states, weight, bias)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        if self.soft_cap is None:
            return logits.mul_(self.scale / self.temperature)
        return logits.mul_(self.scale / self.soft_cap).tanh_().mul_(self.soft_cap / self.temperature)

    def through(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """(n, V) ∂/∂(W h + b) from ∂/∂z, in place."""
        if self.soft_cap is not None:
            squeezed = logits * (self.temperature / self.soft_cap)  # tanh, whose derivative is 1 - tanh²
            gradient.mul_(squeezed.square_().neg_().add_(1.0))
        return gradient.mul_(self.scale / self.temperature)


def token_outcomes(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shape: LogitShape
) -> tuple[Tensor, Tensor]:
    """(N,) logprobs of `targets` (N,) and (N,) entropies, from `states` (N, H) and a head's weight (V, H) and bias."""
    outcomes: tuple[Tensor, Tensor] = _Outcomes.apply(states, weight, bias, targets, shape)  # type: ignore[no-untyped-call]  # torch
    return outcomes


class _Outcomes(torch.autograd.Function):
    """log p(target) and H = log Z − Σ p·z of softmax(z), where Z = Σ exp z.

    ∂log p(t)/∂z_i = [i = t] − p_i and ∂H/∂z_i = −p_i·(log p_i + H).
    """

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's own
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shape: LogitShape,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalisers, only_piece = [], [], [], None
        for begin in range(0, max(len(states), 1), shape.tokens_at_once):
            here = slice(begin, begin + shape.tokens_at_once)
            logits = shape.of(states[here], weight, bias)
            normaliser = torch.logsumexp(logits, dim=-1)
            normalisers.append(normaliser)
            logprobs.append(logits.gather(1, targets[here, None])[:, 0] - normaliser)
            if shape.entropy:
                entropies.append(normaliser - (logits - normaliser[:, None]).exp_().mul_(logits).sum(dim=-1))
            if len(states) <= shape.tokens_at_once:
                only_piece = logits
            del logits  # Before the next piece takes as much.
        normaliser = torch.cat(normalisers)
        entropy = torch.cat(entropies) if shape.entropy else torch.zeros_like(normaliser)
        ctx.save_for_backward(states, weight, bias, targets, normaliser, entropy, only_piece)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        if not shape.entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of states, weight and bias; those of an outcome that is not trained on are None.

        Over several pieces those of weight and bias are added up in float32 and rounded once: a sum in bfloat16 loses
        what is small beside it. Of 16 bits that sum takes twice the gradient's bytes, and three times with the rounded
        gradient beside it, when the pieces are gone.
        """
        states, weight, bias, targets, normaliser, entropy, only_piece = ctx.saved_tensors
        shape: LogitShape = ctx.shape
        of_logprobs = torch.zeros_like(normaliser) if of_logprobs is None else of_logprobs
        of_states = torch.empty_like(states)
        sums = weight.dtype if only_piece is not None else torch.promote_types(weight.dtype, torch.float32)
        of_weight = torch.zeros_like(weight, dtype=sums) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=sums) if ctx.needs_input_grad[2] else None
        for begin in range(0, len(states), shape.tokens_at_once):
            here = slice(begin, begin + shape.tokens_at_once)
            logits = shape.of(states[here], weight, bias) if only_piece is None else only_piece
            gradient = (logits - normaliser[here, None]).exp_()  # p
            if of_entropy is None:
                gradient.mul_(-of_logprobs[here, None])
            else:
                pull = logits + (entropy - normaliser)[here, None]  # log p + H
                gradient.mul_(pull.mul_(of_entropy[here, None]).add_(of_logprobs[here, None]).neg_())
            gradient.scatter_add_(1, targets[here, None], of_logprobs[here, None])
            gradient = shape.through(gradient, logits)
            del logits  # Before a copy in 16 bits, and what the products take.
            gradient = gradient.to(states.dtype)
            torch.mm(gradient, weight, out=of_states[here])
            if of_weight is not None:
                _add_product(of_weight, gradient.T, states[here])
            if of_bias is not None:
                of_bias += gradient.sum(dim=0, dtype=sums)
            del gradient  # As in `forward`.
        return of_states, _rounded(of_weight, weight), _rounded(of_bias, bias), None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (V, H) += left (V, n)·right (n, H); of another format than `total`, some rows of the product at a time."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    num_rows = max(1, left.numel() // right.shape[1])  # Whose product is no larger than `left`.
    for begin in range(0, len(total), num_rows):
        rows = slice(begin, begin + num_rows)
        total[rows].add_(left[rows] @ right)


def _rounded(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(like.dtype)
