"""Several nodes on this machine: processes spread over them, weights that cross to each once, and nodes that are lost.

It must not import what the processes that it starts do not need, because each of them imports this file.
"""

import asyncio
import time
from collections.abc import Iterator

import pytest
import ray
from ray._private.internal_api import node_stats

from services.contracts.errors import UserError, WorkerLost
from services.contracts.records import Canary, Publication, WeightManifest
from services.control.actor import Actor
from services.control.cluster import Cluster, Room
from services.control.config import ClusterConfig
from services.control.placement import Demand
from services.transport.shared_memory_weights import SharedMemoryWeights
from tests.ray_nodes import Nodes, joined, ray_nodes

WEIGHT_BYTES = 20 * 2**20
LEARNER = Demand(name="learner rank 0", cpus=3)
RANKS = [Demand(name=f"learner rank {rank}", cpus=2) for rank in range(2)]
WORKERS = [Demand(name=f"rollout worker {worker}", cpus=1) for worker in range(2)]


class Trader:
    """Publishes and fetches weights as learner and rollout worker do."""

    def publish(self) -> Publication:
        manifest = WeightManifest(
            version=1,
            tensors=(),
            bucket_bytes=(WEIGHT_BYTES,),
            checksums=("",),
            canary=Canary(sequences=(), logprobs=(), tolerance=0.0),
        )
        self._weights = SharedMemoryWeights()
        return self._weights.publish(manifest, [memoryview(bytes(WEIGHT_BYTES))])

    def fetch(self, publication: Publication) -> int:
        return sum(bucket.nbytes for bucket in SharedMemoryWeights().fetch(publication, timeout_s=10))

    def nap(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head that only the learner fits on, and a node for two workers."""
    with ray_nodes(3, 2) as started:
        yield started


def on(nodes: Nodes) -> ClusterConfig:
    return ClusterConfig(address=nodes.address)


def trader(cluster: Cluster, room: Room) -> Actor:
    return cluster.spawn(Trader, room, {}, environment={})


def bytes_that_came(node_id: str) -> int:
    """Bytes of all objects that were ever made in the node's object store, by a process there or by a transfer."""
    [node] = [node for node in ray.nodes() if node["NodeID"] == node_id]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
    return int(stats.cumulative_created_bytes)


async def test_weights_cross_to_a_node_once_however_many_workers_are_there(nodes: Nodes) -> None:
    with joined(nodes), Cluster(on(nodes), [LEARNER, *WORKERS]) as cluster:
        learner = trader(cluster, await cluster.reserve(LEARNER, timeout_s=10))
        workers = [trader(cluster, await cluster.reserve(demand, timeout_s=10)) for demand in WORKERS]
        located = [await actor.locate(timeout_s=30) for actor in (learner, *workers)]
        learner_node, worker_node = (node.node_id for node in nodes.nodes)
        assert [location.node_id for location in located] == [learner_node, worker_node, worker_node]
        publication = await learner.call("publish", timeout_s=20)
        before = bytes_that_came(worker_node)
        fetched = await asyncio.gather(*(worker.call("fetch", publication, timeout_s=20) for worker in workers))
        assert fetched == [WEIGHT_BYTES, WEIGHT_BYTES]
        assert WEIGHT_BYTES <= bytes_that_came(worker_node) - before < 1.1 * WEIGHT_BYTES


async def test_learner_ranks_spread_over_nodes_when_no_node_has_room_for_all(nodes: Nodes) -> None:
    with joined(nodes), Cluster(on(nodes), RANKS) as cluster:
        rooms = await cluster.reserve_together(RANKS, timeout_s=10)
        located = [await trader(cluster, room).locate(timeout_s=30) for room in rooms]
        assert {location.node_id for location in located} == {node.node_id for node in nodes.nodes}


def test_a_process_that_no_node_has_room_for_is_told_at_once(nodes: Nodes) -> None:
    wide, narrow = Demand(name="learner rank 0", cpus=4), Demand(name="rollout worker 0", cpus=1, gpus=1)
    with joined(nodes):
        started = time.monotonic()
        with pytest.raises(UserError) as caught:
            Cluster(on(nodes), [wide, narrow])
        assert time.monotonic() - started < 5
    assert "needs 5 CPU, 1 GPU: learner rank 0: 4 CPU; rollout worker 0: 1 CPU, 1 GPU" in str(caught.value)
    assert "the cluster has 5 CPU, 0 GPU on 2 machines (" in str(caught.value)
    assert "no room for learner rank 0, rollout worker 0; lower rollout.num_workers" in str(caught.value)


async def test_lost_nodes_cost_their_processes_and_nothing_else() -> None:
    with ray_nodes(3, 1, 1) as nodes, joined(nodes), Cluster(on(nodes), [LEARNER, *WORKERS]) as cluster:
        learner = trader(cluster, await cluster.reserve(LEARNER, timeout_s=10))
        publication = await learner.call("publish", timeout_s=20)
        for loss, within_s in (("kill", 2), ("freeze", 20)):
            room = await cluster.reserve(WORKERS[0], timeout_s=30)
            worker = trader(cluster, room)
            location = await worker.locate(timeout_s=30)
            assert await worker.call("fetch", publication, timeout_s=20) == WEIGHT_BYTES
            [node] = [node for node in nodes.nodes[1:] if node.node_id == location.node_id]
            napping = asyncio.ensure_future(worker.call("nap", 60.0, timeout_s=50))
            await asyncio.sleep(0)
            node.kill() if loss == "kill" else node.freeze()
            started = time.monotonic()
            with pytest.raises(WorkerLost, match="rollout worker 0"):
                await napping
            assert time.monotonic() - started < within_s
            await worker.kill(timeout_s=30)
            assert time.monotonic() - started < 20
            cluster.release(room)
        assert await learner.call("fetch", publication, timeout_s=20) == WEIGHT_BYTES
