"""Weights as bytes: the learner packs them into buckets, a transport moves them, each worker verifies and unpacks.

It must not know what a model is, who trains it or who serves it. Invariants: a tensor lies whole in one bucket, aligned
to 64 bytes; every byte of a bucket is covered by that bucket's checksum; unpacking copies nothing.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
import xxhash

from services.contracts.errors import ChecksumMismatch, UserError
from services.contracts.records import Canary, TensorEntry, WeightManifest

ALIGNMENT_BYTES = 64
DEFAULT_BUCKET_BYTES = 256 * 1024**2

_Dtype = Literal["float32", "bfloat16", "float16"]
_DTYPES: dict[_Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CPU = torch.device("cpu")


def pack(
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    version: int,
    dtype: str,
    canary: Canary,
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    reuse: Sequence[memoryview] = (),
) -> tuple[WeightManifest, list[memoryview]]:
    """Copy tensors, once, into buckets of at most `bucket_bytes` (a larger tensor has a bucket of its own).

    Args:
        tensors: name and tensor, on any device; taken one at a time, so a sharded model never is whole in memory twice.
        version: the policy version that these weights are.
        dtype: number format to send; tensors of another are cast during the copy.
        canary: what a worker must reproduce once it has loaded them.
        reuse: buckets of an earlier call, which are overwritten; touching new memory costs more than the copy itself. A
            transport has copied them by the time that its `publish` returns.

    Raises:
        UserError: a number format that is not sent.
    """
    packer = Packer(dtype, bucket_bytes, reuse=[_as_tensor(bucket) for bucket in reuse])
    entries, filled = packer.pack(tensors)
    buckets = [bucket.numpy().data for bucket in filled]
    manifest = WeightManifest(
        version=version,
        tensors=entries,
        bucket_bytes=tuple(len(bucket) for bucket in buckets),
        checksums=tuple(map(checksum, buckets)),
        canary=canary,
    )
    return manifest, buckets


def verify_checksums(manifest: WeightManifest, buckets: Sequence[memoryview]) -> None:
    """Raise `ChecksumMismatch` unless `buckets` are, byte for byte, the ones that `manifest` describes."""
    if len(buckets) != len(manifest.checksums):
        raise ChecksumMismatch(
            f"version {manifest.version}: {len(buckets)} buckets arrived and {len(manifest.checksums)} were published; "
            "fetch it again"
        )
    for index, (bucket, expected) in enumerate(zip(buckets, manifest.checksums, strict=True)):
        found = checksum(bucket)
        if found != expected:
            raise ChecksumMismatch(
                f"version {manifest.version}: bucket {index} of {len(buckets)} ({len(bucket)} bytes) has checksum "
                f"{found}, published as {expected}; its bytes changed on the way: fetch it again"
            )


def unpack(manifest: WeightManifest, buckets: Sequence[memoryview]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor, in the order they were packed: views of the buckets, to be read and never written."""
    for entry in manifest.tensors:
        yield entry.name, view(_as_tensor(buckets[entry.bucket]), entry)


def checksum(bucket: memoryview) -> str:
    """XXH3-64 of a bucket, as 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(bucket)


class Packer:
    """Fills one bucket after the other, each a tensor of bytes on `device`; `reuse` are buckets to be overwritten.

    Raises:
        UserError: a number format that is not sent.
    """

    def __init__(
        self,
        dtype: str,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        *,
        reuse: Sequence[torch.Tensor] = (),
        device: torch.device = _CPU,
    ) -> None:
        if dtype not in _DTYPES:
            raise UserError(f"weights cannot be sent as {dtype!r}; choose one of {', '.join(_DTYPES)}")
        self._dtype = dtype
        self._bucket_bytes = bucket_bytes
        self._device = device
        self._spare = list(reuse)
        self._entries: list[TensorEntry] = []
        self._full: list[torch.Tensor] = []
        self._open = self._empty(0)
        self._used = 0

    def pack(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[tuple[TensorEntry, ...], list[torch.Tensor]]:
        """Where each tensor went, and the buckets, each as long as what is in it."""
        for name, tensor in tensors:
            self._add(name, tensor)
        self._close()
        return tuple(self._entries), self._full

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        if not tensor.is_floating_point():
            raise UserError(f"tensor {name} is {tensor.dtype}; only floating-point weights can be sent")
        num_bytes = tensor.numel() * _DTYPES[self._dtype].itemsize
        offset = self._reserve(num_bytes)
        entry = TensorEntry(
            name=name, dtype=self._dtype, shape=tuple(tensor.shape), bucket=len(self._full), offset=offset
        )
        view(self._open, entry).copy_(tensor.detach())
        self._entries.append(entry)
        self._used = offset + num_bytes

    def _reserve(self, num_bytes: int) -> int:
        """The offset of the next tensor, in a new bucket if the open one has no room for it."""
        offset = math.ceil(self._used / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if offset + num_bytes > len(self._open):
            self._close()
            self._open = self._bucket(num_bytes)
            return 0
        self._open[self._used : offset] = 0
        return offset

    def _bucket(self, num_bytes: int) -> torch.Tensor:
        while self._spare:
            spare = self._spare.pop(0)
            if len(spare) >= num_bytes:
                return spare
        # Pages that no tensor reaches are never touched, so a small model costs a host no whole bucket.
        return self._empty(max(self._bucket_bytes, num_bytes))

    def _empty(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def _close(self) -> None:
        if self._used:
            self._full.append(self._open[: self._used])
        self._used = 0


def view(bucket: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
    """One tensor where it lies in its bucket, a tensor of bytes."""
    dtype = _DTYPES[entry.dtype]
    num_bytes = math.prod(entry.shape) * dtype.itemsize
    return bucket[entry.offset : entry.offset + num_bytes].view(dtype).view(entry.shape)


def _as_tensor(bucket: memoryview) -> torch.Tensor:
    """The bucket's own bytes, as a tensor."""
    with warnings.catch_warnings():
        # Torch has no read-only tensors, and warns that a published bucket is one.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(bucket, dtype=torch.uint8)
