"""Low-rank adapters through peft: W + (alpha / rank)·B·A with W frozen (LoRA, Hu et al. 2021, arXiv 2106.09685).

It must not know how weights are sharded, nor who reads them. Invariants: B starts at 0, so a network with new adapters
is the network without; what `merged` yields has the names, shapes and number format of a network without adapters, so
nobody who reads it has to know of them. r rank, m × n a weight's shape.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppo_learner.lora_config import LoraConfig
from services.contracts.errors import UserError

ADAPTER_FOLDER = "adapter"
"""Where an export has the adapters by themselves, in peft's format."""

ALL_LINEAR = "all-linear"

_BASE = ".base_layer."
_DOWN = ".lora_A.default.weight"
_UP = ".lora_B.default.weight"


def add_adapters(network: Any, lora: LoraConfig) -> None:  # Any: transformers
    """Freeze a network, and put adapters beside its linear layers. Raises `UserError` for targets that it has not."""
    from peft import LoraConfig as PeftConfig  # Late: peft imports transformers, as in `models.load_network`.
    from peft import inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    config = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets) if lora.targets != ALL_LINEAR else _all_linear(network),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
    )
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    try:
        inject_adapter_in_model(config, network)
    except ValueError as error:
        raise UserError(f"learner.lora.targets {targets} does not fit the model: {error}") from error
    embeddings = network.get_input_embeddings(), network.get_output_embeddings()
    if any(_is_adapted(module) for module in embeddings):
        raise UserError(
            f"learner.lora.targets {targets} names the model's head or embedding, which stay as they are; name "
            "linear layers between them, or use all-linear"
        )
    if not all(isinstance(layer.base_layer, nn.Linear | Conv1D) for layer in _adapted_layers(network).values()):
        raise UserError(
            f"learner.lora.targets {targets} takes in experts, which are one weight together; name linear layers that "
            "are not among them, such as those of attention"
        )


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """Within the block the network is the one that it was before training; for evaluation only."""
    layers = list(_adapted_layers(network).values())
    try:
        for layer in layers:
            layer._disable_adapters = True  # Its own setter takes the adapters out of training, too.
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merged(parameters: Iterable[tuple[str, Tensor]], network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of the same network without adapters: W + (alpha / rank)·B·A in float32, rounded as W is.

    Args:
        parameters: name and whole weight of each parameter of `network` in its own order, one at a time.
        network: where the adapters are; without any, `parameters` go through as they are.
    """
    layers = _adapted_layers(network)
    in_4_bits = {name: weight for name, weight in network.named_parameters() if hasattr(weight, "quant_state")}
    base, down = torch.empty(0), torch.empty(0)
    for name, held in parameters:
        tensor = _from_4_bits(held, in_4_bits[name]) if name in in_4_bits else held
        owner, is_base, part = name.partition(_BASE)
        if name.endswith(_DOWN):
            down = tensor.float().clone()  # (r, n); `tensor` is valid until the next is asked for.
        elif name.endswith(_UP):
            owner = name.removesuffix(_UP)
            layer = layers[owner]
            update = layer.scaling["default"] * (tensor.float() @ down)  # (m, n)
            yield f"{owner}.weight", (base.float() + (update.T if layer.fan_in_fan_out else update)).to(base.dtype)
        elif is_base and part == "weight":
            base = tensor.clone()
        else:
            yield name.replace(_BASE, "."), tensor


def quantisation(dtype: str) -> Any:  # Any: transformers
    """How transformers is to hold weights in 4 bits: NF4 with scales of 8 bits (QLoRA, arXiv 2305.14314).

    Args:
        dtype: number format that they are computed with.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_layout(network: Any) -> None:  # Any: transformers
    """Have layers in 4 bits keep their weights as they were quantised.

    On a CPU with AVX512-BF16 bitsandbytes lays them out anew at the first evaluation, for good: with coarser scales, in
    an order that only its own product reads, and that product has no gradient.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.endswith((_DOWN, _UP))


def write_adapter(weights: dict[str, Tensor], network: Any, base: str, folder: Path) -> None:  # Any: transformers
    """Write adapters so that peft loads them over the model `base`.

    Args:
        weights: name below `network` and whole weight of each of their parameters.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = copy(network.peft_config["default"])
    config.base_model_name_or_path, config.task_type, config.inference_mode = base, "CAUSAL_LM", True
    config.save_pretrained(str(folder))
    named = {f"base_model.model.{name.replace('.default.', '.')}": weight for name, weight in weights.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _all_linear(network: nn.Module) -> str | list[str]:
    """As peft understands it, but for blocks with experts, whose linear layers peft takes for parts of these."""
    experts = [name.rpartition(".")[0] for name, weight in network.named_parameters() if weight.dim() > 2]
    blocks = tuple({f"{name.rpartition('.')[0]}." for name in experts})
    if not blocks:
        return ALL_LINEAR
    head = network.get_output_embeddings()  # type: ignore[operator]  # transformers' own
    linear = (name for name, module in network.named_modules() if isinstance(module, nn.Linear) and module is not head)
    return [name for name in linear if not name.startswith(blocks)]


def _from_4_bits(packed: Tensor, weight: Any) -> Tensor:  # Any: bitsandbytes
    """The weight that its layer computes with."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed, weight.quant_state)  # type: ignore[no-any-return]  # untyped


def _adapted_layers(network: nn.Module) -> dict[str, Any]:  # Any: peft is untyped
    return {name: module for name, module in network.named_modules() if _is_adapted(module)}


def _is_adapted(module: nn.Module | None) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")
