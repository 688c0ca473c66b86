"""The broadcast of weights with gloo in the place of NCCL: delivery, losses, deadlines, and groups made anew."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from services.contracts.errors import DeadlineExceeded, WeightSyncError
from services.contracts.records import Publication
from services.transport.broadcast_weights import BroadcastReceiver, BroadcastSender, Group, Offer, Patience
from services.transport.device_weights import publish_on_device, unpack_stream
from tests.transport.gloo_groups import GlooGroups
from tests.transport.test_weights import CANARY, tensors

PATIENCE = Patience(join_s=2.0, bucket_s=1.0, settle_s=0.2)
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def no_thread_left() -> Iterator[None]:
    """Wait for the calls that were given up: one that is cut off inside torch would take the interpreter down."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    end = time.monotonic() + 20
    for thread in set(threading.enumerate()) - before:
        if thread.daemon:
            thread.join(max(end - time.monotonic(), 0.0))


def sender(patience: Patience = PATIENCE) -> BroadcastSender:
    return BroadcastSender("gloo", "127.0.0.1", GlooGroups(), patience)


def publish(sender: BroadcastSender, *, version: int = 1, num: int = 5) -> Publication:
    weights = [(name, version * tensor) for name, tensor in tensors(num)]
    return publish_on_device(sender, weights, version=version, dtype="float32", canary=CANARY)


def many_buckets(learner: BroadcastSender, version: int) -> Publication:
    """Six tensors of a bucket each, of 1 MiB."""
    learner.spare = [torch.empty(2**20, dtype=torch.uint8) for _ in range(6)]
    weights = [(f"layer.{index}", torch.full((2**18,), float(version + index))) for index in range(6)]
    return publish_on_device(learner, weights, version=version, dtype="float32", canary=CANARY)


class CountingGroups(GlooGroups):
    """Counts the groups that were joined."""

    num_joined = 0

    def join(self, token: str, *, rank: int, world_size: int) -> Group:
        self.num_joined += 1
        return super().join(token, rank=rank, world_size=world_size)


class Receivers:
    """Receivers with names, each of which asks in a thread of its own."""

    def __init__(self, *names: str) -> None:
        self.groups = {name: CountingGroups() for name in names}
        self.receivers = {name: BroadcastReceiver(name, self.groups[name], PATIENCE) for name in names}
        self._threads = ThreadPoolExecutor()

    def begin(self, publication: Publication, *names: str, timeout_s: float = 20.0) -> list[Future[Weights]]:
        def receive(name: str) -> Weights:
            buckets = self.receivers[name].receive(publication, timeout_s=timeout_s)
            return {tensor: value.clone() for tensor, value in unpack_stream(publication.manifest, buckets)}

        return [self._threads.submit(receive, name) for name in names]

    def all(self, publication: Publication, *names: str) -> list[Weights]:
        return [future.result(30) for future in self.begin(publication, *(names or self.receivers))]


def is_version(found: Weights, version: int) -> bool:
    return all(torch.equal(found[name], version * tensor) for name, tensor in tensors())


def test_every_receiver_gets_every_version_in_one_group() -> None:
    learner, workers = sender(), Receivers("a", "b", "c")

    for version in (1, 2, 3):
        found = workers.all(publish(learner, version=version))
        assert all(is_version(one, version) for one in found)

    assert [groups.num_joined for groups in workers.groups.values()] == [1, 1, 1]


def test_publishing_waits_for_nobody_and_a_late_receiver_is_served() -> None:
    learner, workers = sender(), Receivers("a", "b")
    started = time.monotonic()
    publication = publish(learner)
    assert time.monotonic() - started < PATIENCE.settle_s

    assert is_version(workers.all(publication, "a")[0], 1)
    assert is_version(workers.all(publication, "b")[0], 1)


def test_the_version_before_the_last_is_kept_and_an_older_one_is_refused() -> None:
    learner, workers = sender(), Receivers("a")
    oldest, older, _ = (publish(learner, version=version) for version in (1, 2, 3))

    assert is_version(workers.all(older)[0], 2)
    with pytest.raises(WeightSyncError, match="no longer kept"):
        workers.all(oldest)


def test_after_one_left_the_next_group_is_made_of_the_others_and_a_newcomer() -> None:
    learner, workers = sender(), Receivers("a", "b", "c")
    workers.all(publish(learner, version=1), "a", "b")

    assert is_version(workers.all(publish(learner, version=2), "a")[0], 2)
    assert all(is_version(one, 3) for one in workers.all(publish(learner, version=3), "a", "c"))
    assert workers.groups["a"].num_joined in (2, 3)  # Its old group, if it asked before the newcomer and was served.
    assert workers.groups["c"].num_joined == 1


FOREIGN = """
import sys
from services.contracts.records import Canary, Publication, WeightManifest
from services.transport.broadcast_weights import BroadcastReceiver, Offer, Patience
from tests.transport.gloo_groups import GlooGroups

port, *sizes = map(int, sys.argv[1:])
manifest = WeightManifest(version=1, tensors=(), bucket_bytes=tuple(sizes), checksums=(),
                          canary=Canary(sequences=(), logprobs=(), tolerance=0.0))
offer = Offer(host="127.0.0.1", port=port, number=0)
publication = Publication(transport="gloo", manifest=manifest, locations=(offer,))
buckets = BroadcastReceiver("foreign", GlooGroups(), Patience()).receive(publication, timeout_s=60)
print("ready", flush=True)
sys.stdin.readline()
next(buckets)
print("first bucket", flush=True)
sys.stdin.readline()  # Holds up the round until this process is killed.
"""


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_freezes_in_the_middle_of_a_round_costs_the_others_one_deadline(fault: int) -> None:
    learner, workers = sender(replace(PATIENCE, settle_s=1.0)), Receivers("a")
    publication = many_buckets(learner, 1)
    (offer,) = publication.locations
    assert isinstance(offer, Offer)
    command = [sys.executable, "-c", FOREIGN, str(offer.port), *map(str, publication.manifest.bucket_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin and process.stdout and process.stdout.readline() == "ready\n"
            print(file=process.stdin, flush=True)
            (future,) = workers.begin(publication, "a")
            assert process.stdout.readline() == "first bucket\n"
            os.kill(process.pid, fault)
            started = time.monotonic()
            found = future.result(30)
            assert time.monotonic() - started < 2 * (PATIENCE.join_s + PATIENCE.bucket_s)
        finally:
            process.kill()

    assert all(float(found[f"layer.{index}"][-1]) == 1.0 + index for index in range(6))
    assert workers.groups["a"].num_joined == 2


class Silent(GlooGroups):
    """Takes its seat and never comes, like a process that froze between the two."""

    def __init__(self) -> None:
        self.thaw = threading.Event()

    def join(self, token: str, *, rank: int, world_size: int) -> Group:
        self.thaw.wait(8)
        raise RuntimeError("too late")


class Deaf(GlooGroups):
    """Joins, and then takes no bucket after the first."""

    def join(self, token: str, *, rank: int, world_size: int) -> Group:
        return _DeafGroup(super().join(token, rank=rank, world_size=world_size))


class _DeafGroup:
    def __init__(self, group: Group) -> None:
        self._group = group
        self._end = threading.Event()
        self._num_heard = 0

    def broadcast(self, bucket: torch.Tensor) -> None:
        self._num_heard += 1
        if self._num_heard > 1:
            self._end.wait(8)
            raise RuntimeError("aborted")
        self._group.broadcast(bucket)

    def abort(self) -> None:
        self._end.set()


@pytest.mark.parametrize("make", [Silent, Deaf])
def test_a_member_that_comes_to_a_stop_costs_the_others_one_deadline(make: Callable[[], GlooGroups]) -> None:
    learner, workers = sender(), Receivers("a", "b")
    stuck = BroadcastReceiver("stuck", make(), replace(PATIENCE, join_s=20.0, bucket_s=20.0, max_rounds=1))
    publication = many_buckets(learner, 1)
    threading.Thread(target=lambda: list(stuck.receive(publication, timeout_s=20)), daemon=True).start()
    started = time.monotonic()

    found = workers.all(publication)

    assert time.monotonic() - started < 2 * (PATIENCE.join_s + PATIENCE.bucket_s)
    assert all(float(one[f"layer.{index}"][-1]) == 1.0 + index for one in found for index in range(6))
    started = time.monotonic()
    publish(learner, version=2)
    assert time.monotonic() - started < 1.0


def test_a_broken_round_is_taken_up_where_it_broke() -> None:
    learner, workers = sender(), Receivers("a")
    publication = many_buckets(learner, 1)
    workers.receivers["a"] = BroadcastReceiver("a", Deaf(), replace(PATIENCE, bucket_s=0.3, max_rounds=20))

    (found,) = workers.all(publication)

    assert all(float(found[f"layer.{index}"][-1]) == 1.0 + index for index in range(6))


def test_who_gives_up_in_the_middle_leaves_the_group_and_may_come_back() -> None:
    learner, workers = sender(), Receivers("a")
    buckets = workers.receivers["a"].receive(many_buckets(learner, 1), timeout_s=20)
    next(buckets)
    buckets.close()

    assert is_version(workers.all(publish(learner, version=2))[0], 2)
    assert workers.groups["a"].num_joined == 2


def test_another_learner_is_another_group() -> None:
    workers = Receivers("a")
    for version in (1, 2):
        learner = sender()
        assert is_version(workers.all(publish(learner, version=version))[0], version)


def test_a_learner_that_is_gone_ends_in_a_deadline() -> None:
    publication = publish(sender())
    offer = publication.locations[0]
    assert isinstance(offer, Offer)
    nobody = replace(publication, locations=(replace(offer, port=1),))

    with pytest.raises(DeadlineExceeded, match=r"127\.0\.0\.1:1"):
        Receivers("a").begin(nobody, "a", timeout_s=0.5)[0].result(10)


def test_a_receiver_whose_rounds_all_break_says_so_before_its_deadline() -> None:
    class Broken(GlooGroups):
        def join(self, token: str, *, rank: int, world_size: int) -> Group:
            raise RuntimeError("no such library")

    receiver = BroadcastReceiver("a", Broken(), replace(PATIENCE, max_rounds=2))
    learner = sender(replace(PATIENCE, join_s=0.3))

    with pytest.raises(DeadlineExceeded, match=r"in 2 rounds .* no such library"):
        next(receiver.receive(publish(learner), timeout_s=60))
