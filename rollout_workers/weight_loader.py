"""Puts packed weights into the live model of a vLLM engine, on a CPU or a GPU, one process or one per model slice.

`weight_transfer` mixes `PackedWeightLoading` into vLLM's own worker class, so this runs where the model is. It must not
know requests, versions or transports. Invariant: when loading returns, every parameter has been given, and no kernel
still reads a copy that it packed from the old ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from services.contracts.errors import WeightSyncError
from services.contracts.records import WeightManifest
from services.transport.weights import unpack


class PackedWeightLoading:
    """The method that an engine calls on its worker, or on each of them when the model is sliced."""

    model_runner: Any  # Any: vLLM's, of whichever device

    def load_packed_weights(
        self, manifest: WeightManifest, buckets: Sequence[npt.NDArray[np.uint8]], repack_tied_head: bool
    ) -> None:
        """Load all tensors of `manifest`. Arrays, because vLLM can send them to another process.

        Raises:
            WeightSyncError: a tensor is unknown, of the wrong shape or missing; the model is then unusable until the
                next load.
        """
        model = self.model_runner.get_model()
        config = self.model_runner.vllm_config.model_config
        with does_not_fit(manifest):
            loaded = _reload(model, config, unpack(manifest, [bucket.data for bucket in buckets]))
        check_complete(manifest, parameter_names(model), loaded)
        if repack_tied_head:
            repack(model)


@contextmanager
def does_not_fit(manifest: WeightManifest) -> Iterator[None]:
    """Turn what vLLM's loading raises for foreign tensors into a `WeightSyncError`."""
    try:
        yield
    except (AssertionError, AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise WeightSyncError(
            f"version {manifest.version} does not fit the model that this worker runs "
            f"({type(error).__name__}: {error}); give learner and workers the same model.path"
        ) from error


def parameter_names(model: torch.nn.Module) -> set[str]:
    """What a load must give; to be asked outside of one, since vLLM unties tied weights meanwhile."""
    return {name for name, _ in model.named_parameters()}


def check_complete(manifest: WeightManifest, names: set[str], loaded: set[str]) -> None:
    """Raise `WeightSyncError` when a parameter of the model was not loaded."""
    missing = names - loaded
    if missing:
        raise WeightSyncError(
            f"version {manifest.version} lacks {len(missing)} parameters, among them {sorted(missing)[0]}; "
            "publish every parameter of the policy"
        )


def repack(model: torch.nn.Module) -> None:
    """Pack anew what kernels of the CPU read in place of the weights that a reload filled.

    vLLM packs linear weights for its CPU kernels and drops the originals, except that of an output head, which the
    embedding may share: a reload fills the original and leaves the head's packed copy with the old values. Experts it
    packs in place, and only when they are loaded first: a reload leaves them as they were stored.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None and current_platform.is_cpu():
            kernel.fused_experts.process_weights_after_loading(module)


@torch.no_grad()
def _reload(model: torch.nn.Module, config: Any, tensors: Any) -> set[str]:  # Any: vLLM's untyped model interface
    """Names of the parameters that were loaded."""
    initialize_layerwise_reload(model)
    try:
        return set(model.load_weights(tensors))  # type: ignore[operator]  # every vLLM model has it, no base class says so
    finally:
        # Also after a failure: it takes off the wrappers that would confuse the next load.
        finalize_layerwise_reload(model, config)
