"""Gloo in the place of NCCL, so that the broadcast of weights can be tested without a GPU.

Invariant: like NCCL, a call blocks until every member has come, and for longer than any test waits if one does not.
"""

from datetime import timedelta

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]  # as it says

from services.transport.broadcast_weights import BroadcastReceiver, BroadcastSender
from services.transport.transports import DeviceTransport

_LONG = timedelta(seconds=8)


class GlooGroups:
    """Makes groups between buffers of the host."""

    device = torch.device("cpu")

    def new_token(self) -> str:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_LONG)
        return str(self._store.port)

    def join(self, token: str, *, rank: int, world_size: int) -> "_GlooGroup":
        store = TCPStore("127.0.0.1", int(token), is_master=False, wait_for_workers=False, timeout=_LONG)
        return _GlooGroup(ProcessGroupGloo(PrefixStore("group", store), rank, world_size, _LONG))


class _GlooGroup:
    def __init__(self, group: ProcessGroupGloo) -> None:
        self._group = group

    def broadcast(self, bucket: torch.Tensor) -> None:
        self._group.broadcast(bucket, 0).wait()

    def abort(self) -> None:
        self._group.abort()


GLOO = DeviceTransport(
    sender=lambda device, host: BroadcastSender("gloo", host, GlooGroups()),
    receiver=lambda device, member: BroadcastReceiver(member, GlooGroups()),
)
