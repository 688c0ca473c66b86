"""Weights that go from GPU to GPU: the second kind of transport, received where the model is and not beside it.

A host transport (`weights.py`) hands a worker bytes of its own memory. One of these hands each process that holds a
slice of the model one bucket after the other on that process's own device, so that no process but it must hold the
whole. It must not know NCCL, CUDA IPC or vLLM. Invariant: no bucket is given out before its checksum agreed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from services.contracts.errors import ChecksumMismatch, WeightSyncError
from services.contracts.records import Canary, Publication, WeightManifest
from services.transport.weights import Packer, view

_WORDS_AT_ONCE = 4 * 1024**2
_WEIGHT = 0x1E3779B97F4A7C15
"""An odd number, so that a word that changed always changes the sum; below 2**63, where torch's integers end."""


@runtime_checkable
class DeviceSender(Protocol):
    """The learner's side. `publish` returns at once: the learner waits for no worker."""

    @property
    def device(self) -> torch.device:
        """Where `publish` wants the buckets."""
        ...

    @property
    def spare(self) -> Sequence[torch.Tensor]:
        """Buckets of an earlier version that the next one is to overwrite."""
        ...

    def publish(self, manifest: WeightManifest, buckets: Sequence[torch.Tensor]) -> Publication:
        """Make a version available; the one published before the last may be dropped."""
        ...


class DeviceReceiver(Protocol):
    """The side of one process that holds a model, or a slice of one."""

    def receive(self, publication: Publication, *, timeout_s: float) -> Iterator[torch.Tensor]:
        """The buckets in order, on the process's device. Raises `DeadlineExceeded`, `WeightSyncError`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Pull:
    """A worker's order to the processes of its engine: receive a publication. `member` is the worker's name."""

    publication: Publication
    member: str
    timeout_s: float


def publish_on_device(
    sender: DeviceSender,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    version: int,
    dtype: str,
    canary: Canary,
) -> Publication:
    """Pack tensors where `sender` wants them, as `weights.pack` does on the host, and publish them."""
    entries, buckets = Packer(dtype, reuse=sender.spare, device=sender.device).pack(tensors)
    manifest = WeightManifest(
        version=version,
        tensors=entries,
        bucket_bytes=tuple(len(bucket) for bucket in buckets),
        checksums=tuple(map(word_checksum, buckets)),
        canary=canary,
    )
    return sender.publish(manifest, buckets)


def unpack_stream(manifest: WeightManifest, buckets: Iterator[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor, in the order they were packed, from buckets that come one after the other.

    Raises:
        ChecksumMismatch: a bucket is not, byte for byte, the one that was published.
        WeightSyncError: there are too few buckets, or too many.
    """
    arrived, bucket = -1, torch.empty(0)
    for entry in manifest.tensors:
        while arrived < entry.bucket:
            received = next(buckets, None)
            if received is None:
                raise WeightSyncError(f"version {manifest.version}: buckets ended after {arrived + 1}; fetch it again")
            arrived, bucket = arrived + 1, received
            _verify(manifest, arrived, bucket)
        yield entry.name, view(bucket, entry)
    if next(buckets, None) is not None:  # Asked for, because a receiver ends its round only then.
        raise WeightSyncError(f"version {manifest.version}: more buckets came than its manifest has; fetch it again")


def word_checksum(bucket: torch.Tensor) -> str:
    """A sum of the bucket's 64-bit words, each mixed and multiplied by its place, modulo 2**64: 16 hexadecimal digits.

    Not XXH3, which would bring every byte to the host: this one is made on the bucket's device at the speed of its
    memory, and it is the same on every device. It sees every change of a single word, and words that changed places.
    """
    whole = len(bucket) // 8 * 8
    total = 0
    for begin in range(0, whole // 8, _WORDS_AT_ONCE):
        words = bucket[begin * 8 : min(whole, (begin + _WORDS_AT_ONCE) * 8)].view(torch.int64)
        places = torch.arange(begin, begin + len(words), device=bucket.device)
        # The upper half goes into the lower one too: times an odd number, the topmost bit is the same at every place.
        mixed = words ^ (words >> 32 & 0xFFFF_FFFF)
        total += int((mixed * ((2 * places + 1) * _WEIGHT)).sum())
    tail = int.from_bytes(bytes(bucket[whole:].tolist()), "little")
    tail ^= tail >> 32
    return f"{(total + tail * (whole // 4 + 1) * _WEIGHT) % 2**64:016x}"


def _verify(manifest: WeightManifest, index: int, bucket: torch.Tensor) -> None:
    found, expected = word_checksum(bucket), manifest.checksums[index]
    if found != expected:
        raise ChecksumMismatch(
            f"version {manifest.version}: bucket {index} of {len(manifest.checksums)} ({len(bucket)} bytes) has "
            f"checksum {found}, published as {expected}; its bytes changed on the way: publish it again"
        )
