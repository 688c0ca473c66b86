"""Which weight transports there are, by their names in `weights.transport`.

It must not import torch, nor what a transport needs: a configuration is checked where neither is used. Every maker
imports its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from services.contracts.errors import UserError
from services.contracts.interfaces import WeightTransport

if TYPE_CHECKING:
    import torch

    from services.transport.device_weights import DeviceReceiver, DeviceSender


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceTransport:
    """Both sides of a transport.

    Attributes:
        sender: made with the learner's device, and an address at which workers reach the learner's machine.
        receiver: made with the device of the model, and a name that no other receiver has.
    """

    sender: Callable[[torch.device, str], DeviceSender]
    receiver: Callable[[torch.device, str], DeviceReceiver]


def transport_names() -> list[str]:
    """What `weights.transport` may be."""
    return [*TRANSPORTS, *DEVICE_TRANSPORTS]


def _need_gpu(name: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise UserError(
            f"weights.transport {name} goes from GPU to GPU and the learner runs on the {device.type}; set "
            f"cluster.gpus_per_learner_rank to 1, or choose one of {', '.join(TRANSPORTS)}"
        )


def _nccl_sender(device: torch.device, host: str) -> DeviceSender:
    _need_gpu("nccl", device)
    from services.transport.broadcast_weights import BroadcastSender
    from services.transport.nccl_group import NcclGroups  # vLLM, which only a run on GPUs needs in its learner

    return BroadcastSender("nccl", host, NcclGroups(device))


def _nccl_receiver(device: torch.device, member: str) -> DeviceReceiver:
    from services.transport.broadcast_weights import BroadcastReceiver
    from services.transport.nccl_group import NcclGroups

    return BroadcastReceiver(member, NcclGroups(device))


def _ipc_sender(device: torch.device, host: str) -> DeviceSender:
    _need_gpu("ipc", device)
    from services.transport.ipc_weights import IpcSender

    return IpcSender(device)


def _ipc_receiver(device: torch.device, member: str) -> DeviceReceiver:
    from services.transport.ipc_weights import IpcReceiver

    return IpcReceiver(device)


DEVICE_TRANSPORTS: dict[str, DeviceTransport] = {
    "nccl": DeviceTransport(sender=_nccl_sender, receiver=_nccl_receiver),
    "ipc": DeviceTransport(sender=_ipc_sender, receiver=_ipc_receiver),
}


class TransportMaker(Protocol):
    """Makes one side of a transport through host memory, or through `folder` where it is one of files."""

    def __call__(self, folder: Path | None = None) -> WeightTransport: ...


def _shared_memory(folder: Path | None = None) -> WeightTransport:
    from services.transport.shared_memory_weights import SharedMemoryWeights  # Ray, which the disk does without

    return SharedMemoryWeights()


def _disk(folder: Path | None = None) -> WeightTransport:
    from services.transport.disk_weights import DiskWeights

    return DiskWeights(folder)


TRANSPORTS: dict[str, TransportMaker] = {
    "shared_memory": _shared_memory,
    "disk": _disk,
}
