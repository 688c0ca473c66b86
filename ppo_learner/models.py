"""The networks: policy (with or without a value head), critic and frozen reference, read from Hugging Face folders.

They must not know losses or DeepSpeed, and of ranks only that some may share sequences. Invariants: dropout is off
unless asked for, and the noise of routers always, since trained logprobs must be those that were sampled; no attention
mask is passed, so inputs are padded at the right or packed; parameter names below `language_model` are the Hugging Face
ones. B sequences, T tokens, N sampled tokens, n of them those of this rank's part, H hidden size.
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo_learner.batching import MicroBatch
from ppo_learner.lora import add_adapters, keep_layout, quantisation
from ppo_learner.moe import experts_per_token, routing
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.ranks import Ranks
from ppo_learner.sequence_parallel import RowPart, SequenceParallel
from ppo_learner.token_head import OutputLayer, TokenHead
from services.contracts.errors import UserError
from services.contracts.settings import ModelConfig

LANGUAGE_MODEL = "language_model."
"""Prefix of the policy's Hugging Face parameter names inside `Policy`."""

HEAD_TOLERANCE = 0.05
"""Largest mean difference, in nats, of logprobs by head and by model: rounding in bfloat16, on the same states."""
_LARGE_LOGIT = 50.0
"""Beyond the soft caps that families put on logits."""


class ValueHead(nn.Module):
    """One float32 number per hidden state; starts at 0, so that untrained values push nothing.

    Args:
        hidden_size: H.
        dtype: number format of its weights, that of the network it sits on.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, states: Tensor) -> Tensor:
        """(N, H) → (N,)."""
        return functional.linear(states.float(), self.weight.float(), self.bias.float())[:, 0]


class PolicyOutcome(NamedTuple):
    """What a policy says of the N sampled tokens of a micro-batch.

    Attributes:
        logprobs: (N,).
        entropy: (N,) of each token's distribution, in nats.
        values: (N,); None without a value head.
        routing: (2, L, E) of all tokens that this rank has, as `moe` has it; None without experts.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None
    routing: Tensor | None


class Policy(nn.Module):
    """A causal language model that answers with logprobs of given tokens instead of logits.

    Args:
        language_model: a transformers causal language model.
        temperature: the sampling temperature; divides the logits.
        value_head: also predict values from the same hidden states.
        sequences: how ranks share them; by default they do not.

    Attributes:
        experts_per_token: where it is a mixture of experts, how many each token goes to.
    """

    def __init__(
        self,
        language_model: Any,  # Any: transformers
        *,
        temperature: float,
        value_head: bool = False,
        sequences: SequenceParallel | None = None,
    ) -> None:
        super().__init__()
        config = language_model.config
        self.sequences = sequences
        self.language_model = language_model
        self.token_head = TokenHead(language_model.get_output_embeddings(), config, temperature=temperature)
        self.value_head = ValueHead(config.hidden_size, language_model.dtype) if value_head else None
        self.experts_per_token = experts_per_token(language_model)

    def train(self, mode: bool = True) -> Self:
        """As torch's, but for the routers of some families, which would draw noise while they learn."""
        super().train(mode)
        for module in self.language_model.modules():
            if any("jitter" in name for name in vars(module)):
                module.eval()
        return self

    def forward(
        self,
        batch: MicroBatch,
        *,
        temperature: float | None = None,
        logprobs: bool = True,
        entropy: bool = True,
        entropy_gradient: bool = False,
    ) -> PolicyOutcome:
        """What it says of a micro-batch's sampled tokens.

        Args:
            temperature: another one than the policy's own.
            logprobs: whether logprobs and entropies are asked for; both are 0 without, and cost nothing.
            entropy: whether entropies are asked for; they are 0 without.
            entropy_gradient: whether the entropy is to be trained on.
        """
        options = {"output_router_logits": True} if self.experts_per_token else {}
        part = self.sequences.part(batch) if self.sequences else batch
        outputs = self.language_model.get_decoder()(**part.inputs, use_cache=False, **options)
        states = part.at_targets(outputs.last_hidden_state)  # (n, H)
        found, entropies = states.new_zeros((2, len(states)), dtype=torch.float32)
        if logprobs:
            found, entropies = self.token_head(
                states, part.targets, temperature=temperature, entropy=entropy, entropy_gradient=entropy_gradient
            )
        return PolicyOutcome(
            logprobs=part.of_all(found),
            entropy=part.of_all(entropies),
            values=part.of_all(self.value_head(states)) if self.value_head is not None else None,
            routing=routing(outputs.router_logits, part.is_real.flatten(), self.experts_per_token)
            if self.experts_per_token
            else None,
        )


class Critic(nn.Module):
    """A transformer of its own with a value head.

    Args:
        trunk: a transformers model without a language-model head.
        sequences: how ranks share them; by default they do not.
    """

    def __init__(self, trunk: Any, *, sequences: SequenceParallel | None = None) -> None:  # Any: transformers
        super().__init__()
        self.trunk = trunk
        self.sequences = sequences
        self.value_head = ValueHead(trunk.config.hidden_size, trunk.dtype)

    def forward(self, batch: MicroBatch) -> Tensor:
        """Values (N,) before each of a micro-batch's sampled tokens."""
        part = self.sequences.part(batch) if self.sequences else batch
        return part.of_all(self.value_head(target_states(self.trunk, part)))


def target_states(transformer: nn.Module, batch: MicroBatch | RowPart) -> Tensor:
    """(N, H) last hidden states at the positions that predict a micro-batch's sampled tokens."""
    return batch.at_targets(transformer(**batch.inputs, use_cache=False).last_hidden_state)


def load_policy(
    model: ModelConfig, learner: OptimizerConfig, ranks: Ranks, *, temperature: float, value_head: bool = False
) -> Policy:
    """The policy, ready to train. Raises `UserError` when it cannot be read."""
    language_model = load_network("AutoModelForCausalLM", model.path, model, learner, quantised=_in_4_bits(learner))
    if learner.lora:
        add_adapters(language_model, learner.lora)
    sequences = _sequences(learner, ranks)
    policy = Policy(language_model, temperature=temperature, value_head=value_head, sequences=sequences)
    check_head(language_model, policy.token_head, model.path)
    return policy


def load_reference(model: ModelConfig, learner: OptimizerConfig, ranks: Ranks, *, temperature: float) -> Policy:
    """The policy as it was before training, frozen; a policy with adapters needs none, as it is one without them."""
    assert not learner.lora
    reference = load_policy(model, learner, ranks, temperature=temperature)
    return reference.requires_grad_(False).eval()


def load_critic(path: str, model: ModelConfig, learner: OptimizerConfig, ranks: Ranks) -> Critic:
    """A critic whose transformer starts from `path`."""
    trunk = load_network("AutoModel", path, model, learner, quantised=_in_4_bits(learner))
    if learner.lora:
        add_adapters(trunk, learner.lora)
    return Critic(trunk, sequences=_sequences(learner, ranks))


def load_tokenizer(model: ModelConfig) -> Any:  # Any: transformers
    """The tokenizer that belongs to the policy."""
    from transformers import AutoTokenizer  # late, as in `load_network`

    path = model.tokenizer or model.path
    revision = None if model.tokenizer else model.revision
    return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=model.trust_remote_code)


def load_network(
    kind: str,
    path: str,
    model: ModelConfig,
    learner: OptimizerConfig,
    *,
    dropout: float = 0.0,
    from_scratch: bool = False,
    quantised: bool = False,
    **changes: object,
) -> Any:  # Any: transformers
    """Read a network of one of transformers' automatic classes, into the memory of the CPU.

    Args:
        kind: name of the class.
        dropout: every dropout rate of its configuration (`attention_dropout`, `resid_pdrop`, …).
        from_scratch: draw random weights instead of reading any.
        quantised: hold the weights of linear layers in 4 bits, which cannot be trained.
        changes: to its configuration.

    Raises:
        UserError: it cannot be read.
    """
    # Late, because it takes seconds and imports DeepSpeed, which chooses its device at that moment.
    import transformers

    transformers.utils.logging.disable_progress_bar()
    source: dict[str, Any] = {  # Any: transformers takes many kinds
        "revision": model.revision if path == model.path else None,
        "trust_remote_code": model.trust_remote_code,
    }
    numbers: dict[str, Any] = {"dtype": getattr(torch, model.dtype), "attn_implementation": learner.attention}
    if quantised:
        # Left alone, transformers puts such a network on the GPU at once; `Engine` wants it on the CPU like any other.
        numbers |= {"quantization_config": quantisation(model.dtype), "device_map": {"": "cpu"}}
    automatic = getattr(transformers, kind)
    try:
        config = transformers.AutoConfig.from_pretrained(path, **source, **changes)
        _set_dropout(config, dropout)
        if from_scratch:
            network = automatic.from_config(config, trust_remote_code=model.trust_remote_code, **numbers)
        else:
            network = automatic.from_pretrained(path, config=config, **source, **numbers)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"the model {path!r} cannot be loaded: {error}") from error
    if quantised:
        keep_layout(network)
    if learner.gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return network


@torch.no_grad()
def check_head(network: Any, head: OutputLayer, path: str) -> None:  # Any: transformers
    """Refuse a family that does to its logits what `OutputLayer` does not know: it would be trained on wrong ones."""
    # The head alone, on states that no transformer made: whose kernels may want a GPU, and whose size would cost time.
    states = torch.linspace(-1, 1, 4 * head.weight.shape[1], dtype=head.weight.dtype).view(4, -1)
    # Small logits tell a wrong scale, and large ones a cap, below which they are nearly what they are without.
    largest = float(functional.linear(states, head.weight, head.bias).abs().max())
    for scale, tolerance in ((1.0, HEAD_TOLERANCE), (_LARGE_LOGIT / max(largest, 1e-6), _LARGE_LOGIT * HEAD_TOLERANCE)):
        error = _head_error(network, head, scale * states)
        if not error < tolerance:
            raise UserError(
                f"{path!r} ({type(network).__name__}) makes its logits in a way of its own: from its head alone, its "
                f"logprobs are off by {error:.2g}; models of this kind cannot be trained"
            )


def _head_error(network: Any, head: OutputLayer, states: Tensor) -> float:  # Any: transformers
    """How far apart logprobs are that the two make of the same last hidden states."""
    decoder = network.get_decoder()
    decoder.forward = lambda *_, **__: _DecoderOutput(states[None])
    try:
        expected = network(input_ids=torch.zeros(1, 4, dtype=torch.int64)).logits[0].float().log_softmax(dim=-1)
    finally:
        del decoder.forward
    return float((head.logits(states).log_softmax(dim=-1) - expected).abs().mean())


class _DecoderOutput:
    """Last hidden states as transformers' decoders return them, and None for whatever else is asked of the output."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: int | slice) -> Any:  # Any: as of a tuple
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


def _sequences(learner: OptimizerConfig, ranks: Ranks) -> SequenceParallel | None:
    """How the ranks share sequences; None where each has its own."""
    return SequenceParallel(ranks, ranks.sharing, learner.attention) if ranks.sharing is not None else None


def _in_4_bits(learner: OptimizerConfig) -> bool:
    return learner.lora is not None and learner.lora.quantise is not None


def _set_dropout(config: Any, rate: float) -> None:  # Any: transformers
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, rate)
