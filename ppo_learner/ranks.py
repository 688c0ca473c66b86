"""The learner's process group: joining it, leaving it, and sums over it.

It must not know models or DeepSpeed. Invariant: whatever waits here is a collective, called by every rank in the same
order. A *share* is what the work of a step is split into: one rank's, or that of a few which share their sequences.
"""

import os
import random
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, distributed

from services.contracts.errors import DeadlineExceeded


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """One process's place among all, and the device it computes on.

    Attributes:
        num_sharing: how many ranks, neighbours of each other, work on the same sequences.
        sharing: their process group; None where each works on its own.
    """

    rank: int
    world_size: int
    device: torch.device
    num_sharing: int = 1
    sharing: distributed.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that writes and reports."""
        return self.rank == 0

    @property
    def num_shares(self) -> int:
        """Into how many shares the work of a step is split."""
        return self.world_size // self.num_sharing

    @property
    def share(self) -> int:
        """Which of them is this rank's."""
        return self.rank // self.num_sharing

    def sum_shares(self, values: Tensor) -> Tensor:
        """Elementwise sum over every share, on the CPU; the ranks of a share have the same `values`."""
        return self.sum(values if self.rank % self.num_sharing == 0 else torch.zeros_like(values))

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over every rank, on the CPU; `values` may lie anywhere and is left as it is."""
        if self.world_size == 1:
            return values.cpu()
        total = values.to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.cpu()

    def max(self, values: Tensor) -> Tensor:
        """Elementwise maximum over every rank, on the CPU; `values` is left as it is."""
        if self.world_size == 1:
            return values.cpu()
        largest = values.to(self.device, copy=True)
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        return largest.cpu()

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            distributed.barrier()


def join(
    *, rank: int, world_size: int, master_address: str, master_port: int, timeout_s: float, num_sharing: int = 1
) -> Ranks:
    """Meet all other ranks at rank 0's address: NCCL where there is a GPU, else gloo.

    Each rank must see its own GPU only, as Ray arranges it.

    Args:
        num_sharing: how many ranks work on the same sequences.

    Raises:
        DeadlineExceeded: not all ranks came in time.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    # DeepSpeed and libraries below it look here and nowhere else.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(master_port),
    }
    timeout = timedelta(seconds=timeout_s)
    try:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{master_address}:{master_port}",
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    except distributed.DistError as error:
        raise DeadlineExceeded(
            waited_for=f"{world_size} learner ranks at {master_address}:{master_port}",
            waited_s=timeout_s,
            advice=f"rank {rank} met no full group ({error}); look at the other ranks' logs and at the firewall",
        ) from error
    sharing = None
    if num_sharing > 1:
        sharing, _ = distributed.new_subgroups(num_sharing, timeout=timeout)  # type: ignore[no-untyped-call]
    return Ranks(rank=rank, world_size=world_size, device=device, num_sharing=num_sharing, sharing=sharing)


def seed_everything(seed: int) -> None:
    """Start every generator that a library may draw from at `seed`, the same on every rank."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
