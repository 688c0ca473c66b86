"""Weights through the memory of one GPU, which learner and rollout worker share: nothing is sent, only a handle.

It must not know what the bytes mean. Invariants: a bucket is exported once and filled again for each version, because
torch pairs each export with one opening, and would never free one that was opened twice; so only the newest version can
be had, and the checksums find a bucket that was overwritten under its reader.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from services.contracts.errors import WeightSyncError
from services.contracts.records import Publication, WeightManifest

_DEVICE_ARGUMENT = 6
"""Place of the device's number among the arguments of `rebuild_cuda_tensor`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A bucket in the memory of the GPU that has this UUID, as torch describes it to another process."""

    gpu: str
    arguments: tuple[object, ...]


class IpcSender:
    """The learner's side. It holds one copy of the policy on the GPU, also while the learner trains."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buckets: tuple[torch.Tensor, ...] = ()
        self._exports: dict[int, Export] = {}

    @property
    def spare(self) -> Sequence[torch.Tensor]:
        return self._buckets

    def publish(self, manifest: WeightManifest, buckets: Sequence[torch.Tensor]) -> Publication:
        self._buckets = tuple(buckets)
        torch.cuda.synchronize(self.device)  # The other process knows nothing of this one's streams.
        return Publication(transport="ipc", manifest=manifest, locations=tuple(map(self._export, buckets)))

    def _export(self, bucket: torch.Tensor) -> Export:
        address = bucket.data_ptr()
        if address not in self._exports:
            _, arguments = reduce_tensor(bucket)  # type: ignore[no-untyped-call]  # torch has no types for it
            self._exports[address] = Export(gpu=_uuid(self.device), arguments=tuple(arguments))
        return self._exports[address]


class IpcReceiver:
    """The side of the process that holds the model, on the same GPU. Nothing here waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mapped: dict[Export, torch.Tensor] = {}

    def receive(self, publication: Publication, *, timeout_s: float) -> Iterator[torch.Tensor]:
        """The sender's own buckets: to be read, and copied before its next `publish`."""
        exports = [location for location in publication.locations if isinstance(location, Export)]
        # A new learner's exports replace those of the one before.
        self._mapped = {export: self._mapped[export] for export in exports if export in self._mapped}
        for export in exports:
            if export not in self._mapped:
                self._mapped[export] = self._open(export)
            yield self._mapped[export]

    def _open(self, export: Export) -> torch.Tensor:
        own = _uuid(self._device)
        if export.gpu != own:
            raise WeightSyncError(
                f"weights lie on GPU {export.gpu} and this worker runs on {own}; weights.transport ipc needs both on "
                "one (rollout.colocate), else use nccl or shared_memory"
            )
        arguments = list(export.arguments)
        arguments[_DEVICE_ARGUMENT] = self._device.index
        try:
            bucket: torch.Tensor = rebuild_cuda_tensor(*arguments)  # type: ignore[no-untyped-call]  # the same
        except RuntimeError as error:
            raise WeightSyncError(f"CUDA opens no memory of the learner: {error}; have it publish again") from error
        return bucket


def _uuid(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)
