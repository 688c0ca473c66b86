"""Packing, checksums, and the contract of every weight transport."""

import subprocess
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.contracts.errors import ChecksumMismatch, DeadlineExceeded, UserError
from services.contracts.interfaces import WeightTransport
from services.contracts.records import Canary
from services.transport.disk_weights import DiskWeights
from services.transport.transports import TRANSPORTS
from services.transport.weights import ALIGNMENT_BYTES, pack, unpack, verify_checksums
from tests.local_ray import local_ray

CANARY = Canary(sequences=(array("i", [1, 2]),), logprobs=(array("f", [-0.5]),), tolerance=1e-4)


def tensors(num: int = 5) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(f"layer.{i}", torch.randn(3 + i, 7, generator=generator)) for i in range(num)]


def test_unpacked_tensors_equal_what_was_packed() -> None:
    manifest, buckets = pack(tensors(), version=3, dtype="float32", canary=CANARY, bucket_bytes=300)

    unpacked = list(unpack(manifest, buckets))

    assert manifest.version == 3
    assert len(buckets) > 1
    assert [name for name, _ in unpacked] == [name for name, _ in tensors()]
    assert all(torch.equal(found, sent) for (_, found), (_, sent) in zip(unpacked, tensors(), strict=True))


def test_a_tensor_is_cast_to_the_number_format_that_is_sent() -> None:
    manifest, buckets = pack(tensors(1), version=1, dtype="bfloat16", canary=CANARY)

    ((_, found),) = unpack(manifest, buckets)

    assert torch.equal(found, tensors(1)[0][1].to(torch.bfloat16))


def test_tensors_are_aligned_and_never_straddle_buckets() -> None:
    manifest, buckets = pack(tensors(9), version=1, dtype="float32", canary=CANARY, bucket_bytes=500)

    for entry in manifest.tensors:
        num_bytes = 4 * entry.shape[0] * entry.shape[1]
        assert entry.offset % ALIGNMENT_BYTES == 0
        assert entry.offset + num_bytes <= manifest.bucket_bytes[entry.bucket]
    assert [len(bucket) for bucket in buckets] == list(manifest.bucket_bytes)


def test_a_tensor_larger_than_a_bucket_has_one_of_its_own() -> None:
    large = ("large", torch.arange(1000.0))
    manifest, buckets = pack(
        [*tensors(1), large, *tensors(1)], version=1, dtype="float32", canary=CANARY, bucket_bytes=128
    )

    assert [entry.bucket for entry in manifest.tensors] == [0, 1, 2]
    assert torch.equal(dict(unpack(manifest, buckets))["large"], large[1])


def test_unpacking_copies_nothing() -> None:
    manifest, buckets = pack(tensors(1), version=1, dtype="float32", canary=CANARY)
    ((_, view),) = unpack(manifest, buckets)

    buckets[0][:4] = b"\0\0\0\0"

    assert view[0, 0] == 0.0


def test_packing_twice_gives_the_same_checksums() -> None:
    first, _ = pack(tensors(), version=1, dtype="float32", canary=CANARY)
    second, _ = pack(tensors(), version=1, dtype="float32", canary=CANARY)

    assert first.checksums == second.checksums


def test_buckets_that_are_given_again_are_filled_again() -> None:
    first, buckets = pack(tensors(), version=1, dtype="float32", canary=CANARY, bucket_bytes=300)
    doubled = [(name, 2 * tensor) for name, tensor in tensors()]

    second, reused = pack(doubled, version=2, dtype="float32", canary=CANARY, bucket_bytes=300, reuse=buckets)

    assert second.tensors == first.tensors
    assert [bytes(bucket) for bucket in reused] == [bytes(bucket) for bucket in buckets]
    assert all(torch.equal(found, sent) for (_, found), (_, sent) in zip(unpack(second, reused), doubled, strict=True))


def test_buckets_too_small_for_other_tensors_are_not_reused() -> None:
    _, buckets = pack(tensors(1), version=1, dtype="float32", canary=CANARY)
    large = [("large", torch.arange(1000.0))]

    manifest, reused = pack(large, version=2, dtype="float32", canary=CANARY, reuse=buckets)

    assert torch.equal(dict(unpack(manifest, reused))["large"], large[0][1])


def test_a_flipped_bit_anywhere_is_found_and_its_bucket_named() -> None:
    manifest, buckets = pack(tensors(), version=7, dtype="float32", canary=CANARY, bucket_bytes=300)
    buckets[1][len(buckets[1]) - 1] ^= 1

    with pytest.raises(ChecksumMismatch, match="version 7: bucket 1 "):
        verify_checksums(manifest, buckets)


def test_a_missing_bucket_is_found() -> None:
    manifest, buckets = pack(tensors(), version=7, dtype="float32", canary=CANARY, bucket_bytes=300)

    with pytest.raises(ChecksumMismatch, match="buckets arrived"):
        verify_checksums(manifest, buckets[:-1])


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(UserError, match="int8"):
        pack(tensors(), version=1, dtype="int8", canary=CANARY)
    with pytest.raises(UserError, match="counter"):
        pack([("counter", torch.arange(3))], version=1, dtype="float32", canary=CANARY)


@pytest.fixture(scope="module")
def started_ray() -> Iterator[None]:
    with local_ray(num_cpus=1):
        yield


@pytest.fixture(params=sorted(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> WeightTransport:
    if request.param == "shared_memory":
        request.getfixturevalue("started_ray")
    return TRANSPORTS[request.param]()


def test_a_transport_delivers_every_byte(transport: WeightTransport) -> None:
    manifest, buckets = pack(tensors(), version=1, dtype="float32", canary=CANARY, bucket_bytes=300)

    fetched = transport.fetch(transport.publish(manifest, buckets), timeout_s=20)

    verify_checksums(manifest, fetched)
    assert [bytes(bucket) for bucket in fetched] == [bytes(bucket) for bucket in buckets]


def test_a_transport_keeps_the_version_before_the_last(transport: WeightTransport) -> None:
    manifest, buckets = pack(tensors(), version=1, dtype="float32", canary=CANARY)
    first = transport.publish(manifest, buckets)
    transport.publish(replace(manifest, version=2), buckets)

    assert bytes(transport.fetch(first, timeout_s=20)[0]) == bytes(buckets[0])


def test_what_a_transport_delivered_outlives_its_publication(transport: WeightTransport) -> None:
    manifest, buckets = pack(tensors(), version=1, dtype="float32", canary=CANARY)
    fetched = transport.fetch(transport.publish(manifest, buckets), timeout_s=20)
    for version in (2, 3, 4):
        transport.publish(replace(manifest, version=version), buckets)

    assert bytes(fetched[0]) == bytes(buckets[0])


def test_a_version_may_be_published_twice(transport: WeightTransport) -> None:
    manifest, buckets = pack(tensors(), version=1, dtype="float32", canary=CANARY)

    both = [transport.publish(manifest, buckets) for _ in range(2)]

    assert all(bytes(transport.fetch(one, timeout_s=20)[0]) == bytes(buckets[0]) for one in both)


def test_the_disk_transport_shows_a_version_whole_or_not_at_all(tmp_path: Path) -> None:
    transport = DiskWeights(tmp_path)
    manifest, buckets = pack(tensors(), version=1, dtype="float32", canary=CANARY, bucket_bytes=300)
    for _ in range(3):
        transport.publish(manifest, buckets)

    folders = [path for path in tmp_path.glob("*/*") if path.is_dir()]
    assert len(folders) == 2
    assert all(len(list(folder.iterdir())) == len(buckets) for folder in folders)


PUBLISHER = """
import sys, time
from array import array
from pathlib import Path
from services.contracts.records import Canary
from services.transport.disk_weights import DiskWeights
from services.transport.weights import pack
canary = Canary(sequences=(), logprobs=(), tolerance=1.0)
weights = DiskWeights(Path(sys.argv[1]))
weights.publish(*pack([], version=1, dtype="float32", canary=canary))
print("published", flush=True)
time.sleep(60)
"""


def publishes(folder: Path) -> set[Path]:
    """What is there once a new publisher has begun, and has ended again."""
    transport = DiskWeights(folder)
    transport.publish(*pack(tensors(1), version=1, dtype="float32", canary=CANARY))
    del transport
    return set(folder.iterdir())


def test_the_next_publisher_removes_what_a_killed_one_left_behind_and_leaves_a_living_ones_alone(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", PUBLISHER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as publisher:
        try:
            assert publisher.stdout is not None
            assert publisher.stdout.readline() == "published\n"
            (folder,) = tmp_path.iterdir()

            assert publishes(tmp_path) == {folder}
        finally:
            publisher.kill()
    assert list(tmp_path.iterdir()) == [folder]
    assert publishes(tmp_path) == set()


def test_weights_that_never_appear_end_in_a_deadline(tmp_path: Path) -> None:
    transport = DiskWeights(tmp_path)
    manifest, buckets = pack(tensors(), version=1, dtype="float32", canary=CANARY)
    publication = transport.publish(manifest, buckets)

    with pytest.raises(DeadlineExceeded, match="nowhere"):
        transport.fetch(replace(publication, locations=(str(tmp_path / "nowhere"),)), timeout_s=0.05)


def test_the_disk_transport_does_without_ray() -> None:
    program = "import sys, services.transport.transports as w; w.TRANSPORTS['disk'](); print('ray' in sys.modules)"

    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert finished.stdout.strip() == "False"
