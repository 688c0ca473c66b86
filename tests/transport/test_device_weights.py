"""Weights for GPUs, as far as a CPU can tell: packing, checksums, the stream of buckets, who may send at all."""

from dataclasses import replace

import pytest
import torch

from services.contracts.errors import ChecksumMismatch, UserError, WeightSyncError
from services.contracts.records import Publication, WeightManifest
from services.transport.device_weights import publish_on_device, unpack_stream, word_checksum
from services.transport.transports import DEVICE_TRANSPORTS
from services.transport.weights import Packer
from tests.transport.test_weights import CANARY, tensors

CPU = torch.device("cpu")


class Kept:
    """A sender that hands its buckets out."""

    device = CPU
    spare: tuple[torch.Tensor, ...] = ()

    def publish(self, manifest: WeightManifest, buckets: list[torch.Tensor]) -> Publication:
        self.spare = tuple(buckets)
        return Publication(transport="kept", manifest=manifest, locations=())


def published(sender: Kept, *, scale: float = 1.0) -> WeightManifest:
    weights = [(name, scale * tensor) for name, tensor in tensors()]
    return publish_on_device(sender, weights, version=7, dtype="bfloat16", canary=CANARY).manifest


def random_bytes(number: int) -> torch.Tensor:
    return torch.randint(0, 256, (number,), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def test_a_stream_of_buckets_gives_what_was_published() -> None:
    sender = Kept()
    manifest = published(sender)

    found = list(unpack_stream(manifest, iter(sender.spare)))

    assert [name for name, _ in found] == [name for name, _ in tensors()]
    assert all(torch.equal(one, sent.bfloat16()) for (_, one), (_, sent) in zip(found, tensors(), strict=True))


def test_buckets_are_taken_one_at_a_time_and_to_the_end() -> None:
    entries, buckets = Packer("float32", 300).pack(tensors())
    manifest = replace(
        published(Kept()),
        tensors=entries,
        checksums=tuple(map(word_checksum, buckets)),
        bucket_bytes=(0,) * len(buckets),
    )
    stream = iter(buckets)
    unpacked = unpack_stream(manifest, stream)

    next(unpacked)
    assert len(buckets) > 2
    assert next(stream) is buckets[1]
    with pytest.raises(ChecksumMismatch):
        list(unpacked)


def test_the_next_version_fills_the_same_memory() -> None:
    sender = Kept()
    first = published(sender)
    (memory,) = sender.spare

    second = published(sender, scale=2.0)

    assert sender.spare[0].data_ptr() == memory.data_ptr()
    assert first.tensors == second.tensors
    assert first.checksums != second.checksums


def test_a_flipped_bit_stops_the_stream_before_its_bucket_is_given_out() -> None:
    sender = Kept()
    manifest = published(sender)
    sender.spare[0][-1] ^= 1

    with pytest.raises(ChecksumMismatch, match="version 7: bucket 0 of 1"):
        next(unpack_stream(manifest, iter(sender.spare)))


@pytest.mark.parametrize("times", [0, 2])
def test_too_few_and_too_many_buckets_are_found(times: int) -> None:
    sender = Kept()
    manifest = published(sender)

    with pytest.raises(WeightSyncError, match="version 7"):
        list(unpack_stream(manifest, iter(sender.spare * times)))


def test_the_checksum_is_the_sum_of_the_mixed_words_times_their_places() -> None:
    odd, modulus = 0x1E3779B97F4A7C15, 2**64
    content = random_bytes(8 * 3 + 5)
    words = [int.from_bytes(bytes(content[8 * i : 8 * i + 8].tolist()), "little") for i in range(4)]

    expected = sum((word ^ word >> 32) * (2 * place + 1) * odd for place, word in enumerate(words)) % modulus

    assert word_checksum(content) == f"{expected:016x}"


def test_the_checksum_sees_every_bit_and_the_order_of_the_words() -> None:
    content = random_bytes(83)
    sums = {word_checksum(content)}
    for place in range(len(content)):
        for bit in range(8):
            changed = content.clone()
            changed[place] ^= 1 << bit
            sums.add(word_checksum(changed))
    assert len(sums) == 1 + 83 * 8

    assert word_checksum(content[:80].view(10, 8).flip(0).reshape(-1)) != word_checksum(content[:80])


# Other tests add gloo, which does without a GPU.
@pytest.mark.parametrize("name", sorted({*DEVICE_TRANSPORTS} - {"gloo"}))
def test_a_learner_without_a_gpu_is_told_so(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} goes from GPU to GPU and the learner runs on the cpu"):
        DEVICE_TRANSPORTS[name].sender(CPU, "127.0.0.1")
