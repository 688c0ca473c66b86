"""NCCL groups between the learner and the processes that hold models, made with vLLM's weight-transfer functions.

The one file of weight transport that knows NCCL. vLLM is imported where a group is made, so that describing a
transport costs nothing. Invariants: a broadcast has ended when it returns, and writes to no memory that an earlier
kernel of this process still reads. A thread that waits in vain for a group to form cannot be ended, and stays behind.
"""

import base64
from typing import Any

import torch

from services.contracts.errors import WeightSyncError
from services.transport.broadcast_weights import Group


class NcclGroups:
    """Makes groups between buffers on `device`, a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def new_token(self) -> str:
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

        return base64.b64encode(bytes(NCCLLibrary().ncclGetUniqueId().internal)).decode()

    def join(self, token: str, *, rank: int, world_size: int) -> Group:
        from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

        torch.cuda.set_device(self.device)  # A thread begins with the first device of its process.
        communicator = uid_init_process_group(base64.b64decode(token), rank, world_size, self.device)
        if not communicator.available:
            raise WeightSyncError("vLLM has NCCL switched off: unset VLLM_DISABLE_PYNCCL, or set weights.transport")
        return _NcclGroup(communicator, self.device)


class _NcclGroup:
    def __init__(self, communicator: Any, device: torch.device) -> None:  # Any: vLLM is untyped
        self._communicator = communicator
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types for it

    def broadcast(self, bucket: torch.Tensor) -> None:
        torch.cuda.set_device(self._device)
        if self._communicator.rank:
            # The allocator knows of no stream but the engine's, whose last kernels may read what this memory was.
            torch.cuda.synchronize(self._device)
        self._communicator.broadcast(bucket, src=0, stream=self._stream)
        self._stream.synchronize()

    def abort(self) -> None:
        self._communicator.destroy()
