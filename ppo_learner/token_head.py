"""From last hidden states to logprob and entropy of given tokens, without ever holding all logits.

It must not know which tokens are trained or why. Invariants: logits are float32 before the softmax, and at most
`logit_elements` of them exist at once; in training, larger inputs are recomputed piece by piece in the backward pass.
N tokens, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo_learner.token_outcomes import LogitShape, token_outcomes

LOGIT_ELEMENTS = 2**26
"""Most logits in one piece, by default: 256 MiB of float32. Smaller pieces cost launches, larger ones memory."""


class OutputLayer(nn.Module):
    """The language-model head as a function from states to logits.

    It shares the weight of the model's own head, so that sharded weights are gathered for this module by itself.

    Args:
        output: the model's output embedding.
        config: the model's configuration, for the scale and soft cap that some families put on logits; of a model that
            reads more than text, that of its text is taken.

    Attributes:
        logit_elements: most logits in one piece.
    """

    def __init__(self, output: nn.Module, config: Any) -> None:  # Any: transformers
        super().__init__()
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        weight, bias = output.weight, getattr(output, "bias", None)
        assert isinstance(weight, nn.Parameter)
        self.weight = weight
        self.bias = bias
        # Cohere and Falcon-H1 multiply, Granite divides; both Gemmas squeeze through a tanh afterwards.
        factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
        self._scale = factor or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        self._soft_cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        self.logit_elements = LOGIT_ELEMENTS

    def num_pieces(self, num_states: int) -> int:
        """Into how many pieces so many states are cut, that none has more than `logit_elements` logits."""
        return max(1, -(-num_states * self.weight.shape[0] // self.logit_elements))

    def logits(self, states: Tensor) -> Tensor:
        """(N, H) → (N, V) float32 at temperature 1, of one piece."""
        logits = functional.linear(states, self.weight, self.bias).float() * self._scale
        return logits if self._soft_cap is None else torch.tanh(logits / self._soft_cap) * self._soft_cap


class TokenHead(OutputLayer):
    """The language-model head, applied at chosen positions only.

    Args:
        temperature: divides the logits, as it did when the tokens were sampled.
    """

    def __init__(self, output: nn.Module, config: Any, *, temperature: float) -> None:  # Any: transformers
        super().__init__(output, config)
        self._temperature = temperature

    def forward(
        self,
        states: Tensor,
        targets: Tensor,
        *,
        temperature: float | None = None,
        entropy: bool = True,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each target and entropy of its distribution.

        Args:
            states: (N, H) last hidden states at the positions that predict the targets.
            targets: (N,) token ids.
            temperature: another one than the head's own.
            entropy: whether it is asked for; it costs a pass over all logits, and is 0 without.
            entropy_gradient: whether it is to be trained on.

        Returns:
            (N,) logprobs and (N,) entropies in nats, float32.
        """
        shape = LogitShape(
            scale=self._scale,
            soft_cap=self._soft_cap,
            temperature=self._temperature if temperature is None else temperature,
            tokens_at_once=max(1, self.logit_elements // self.weight.shape[0]),
            entropy=entropy,
            entropy_gradient=entropy_gradient,
        )
        return token_outcomes(states, self.weight, self.bias, targets, shape)
