"""Weights that the processes of an engine fetch for themselves, GPU to GPU, through vLLM's weight-transfer interface.

vLLM calls `PackedTransfer` in each process that holds the model or a slice of it. It must not know how buckets travel,
requests or versions. Invariants: a bucket is loaded while the next is on its way, so no process holds all of them; no
byte is loaded before its bucket's checksum agreed; whatever fails, the model can be loaded again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rollout_workers.weight_loader import PackedWeightLoading, check_complete, does_not_fit, parameter_names, repack
from services.contracts.errors import DeadlineExceeded, WeightSyncError
from services.transport.device_weights import DeviceReceiver, Pull, unpack_stream
from services.transport.transports import DEVICE_TRANSPORTS

EXTENSION = f"{__name__}.WeightLoading"
"""What `EngineArgs.worker_extension_cls` is given."""


def pull_weights(llm: Any, pull: Pull) -> None:  # Any: vLLM's engine is untyped
    """Have every process of an engine fetch, verify and load a version.

    Raises:
        WeightSyncError: it did not arrive as published, or does not fit; the model is unusable until the next load.
    """
    llm.collective_rpc("open_weight_transfer", args=(pull,))
    llm.collective_rpc("start_weight_update")
    llm.collective_rpc("update_weights", args=({"pull": pull},))
    llm.collective_rpc("finish_weight_update")


class WeightLoading(PackedWeightLoading):
    """What vLLM mixes into its own worker class: weights that are handed to it, and weights that it fetches."""

    def open_weight_transfer(self: Any, pull: Pull) -> None:  # Any: vLLM's worker, of whichever device
        """Set the engine that vLLM's own methods of weight transfer call; one that was opened before stays."""
        if self.weight_transfer_engine is None:
            name = pull.publication.transport
            model = self.model_runner.get_model()
            engine = PackedTransfer(WeightTransferConfig(backend=name), self.vllm_config, self.device, model)
            engine.init_transfer_engine(_Receiving(transport=name, member=f"{pull.member}/{self.rank}"))
            self.weight_transfer_engine = engine


@dataclass
class _Receiving(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is untyped
    transport: str
    member: str


@dataclass
class _Update(WeightTransferUpdateInfo):  # type: ignore[misc]  # vLLM is untyped
    pull: Pull


class PackedTransfer(WeightTransferEngine):  # type: ignore[misc]  # vLLM is untyped
    """What vLLM's worker calls, in this order, for each version: start, update (which receives), finish."""

    init_info_cls = _Receiving
    update_info_cls = _Update
    _receiver: DeviceReceiver

    def init_transfer_engine(self, init_info: _Receiving) -> None:
        self._receiver = DEVICE_TRANSPORTS[init_info.transport].receiver(self.device, init_info.member)

    def start_weight_update(self) -> None:
        self._names = parameter_names(self.model)
        initialize_layerwise_reload(self.model)

    @torch.no_grad()
    def receive_weights(self, update_info: _Update) -> None:
        pull = update_info.pull
        try:
            self._receive(pull)
        except BaseException as error:
            # It takes off the wrappers that would confuse the next load.
            finalize_layerwise_reload(self.model, self.model_config)
            if isinstance(error, DeadlineExceeded):
                raise WeightSyncError(str(error)) from error  # Half a model is loaded: a late version is a failed one.
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack(self.model)

    def shutdown(self) -> None:
        """Nothing: a receiver leaves its group when its process ends, and others do not wait for it."""

    def _receive(self, pull: Pull) -> None:
        manifest = pull.publication.manifest
        buckets = self._receiver.receive(pull.publication, timeout_s=pull.timeout_s)
        with does_not_fit(manifest):
            loaded = set(self.model.load_weights(unpack_stream(manifest, buckets)))
        check_complete(manifest, self._names, loaded)
