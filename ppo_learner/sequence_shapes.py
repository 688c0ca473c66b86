"""Which networks' shapes let ranks share their sequences, told from their configuration alone.

It must not import torch: the command asks before anything starts. What shows in logprobs of short sequences is asked
of the network itself, in `sequence_layout`.
"""

from typing import Any


def unshareable(config: Any, num_sharing: int) -> str | None:  # Any: a configuration of transformers
    """Why so many ranks cannot share the sequences of such a network; None where nothing speaks against it."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads % num_sharing or (kv_heads % num_sharing and num_sharing % kv_heads):
        return f"its {heads} heads, and {kv_heads} of keys, cannot be shared out among {num_sharing} ranks"
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        return "some of its layers attend within chunks, which are cut at other places in a part of a sequence"
    if rotary := _rotary_kinds(getattr(config, "rope_parameters", None) or {}) & {"dynamic", "longrope"}:
        return f"its rotary embedding ({', '.join(rotary)}) depends on the longest position, which a part lacks"
    return None


def _rotary_kinds(parameters: dict[str, Any]) -> set[str]:  # Any: numbers, names, or the parameters of a kind of layer
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(parameters.get("rope_type"))}.union(*map(_rotary_kinds, nested))
