"""When new weights have arrived at each rollout worker, by the way they travel: sequential, tree or shared pull.

Pure arithmetic; it must not know what a worker does with them. The learner and the first `workers_per_node` workers
share a node, and bytes between them move at the speed of memory. Invariant: arrivals are in seconds after the weights
were published, one for each worker, in the order of their numbers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Scheme = Callable[["Network", int], list[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What the weights cross.

    Attributes:
        model_bytes: bytes of one version.
        workers_per_node: rollout workers that share a node's memory and its link.
        link: bytes a second into one node.
        uplink: bytes a second out of the learner's node, to all others together.
        memory: bytes a second at which one process reads what lies in its node's shared memory.
        call_s: seconds of one message, whatever its size.
    """

    model_bytes: float
    workers_per_node: int
    link: float
    uplink: float
    memory: float
    call_s: float

    def hop_s(self, worker: int) -> float:
        """One copy from one process to the process of `worker`, with the link to itself."""
        local = worker < self.workers_per_node
        return self.call_s + self.model_bytes / (self.memory if local else min(self.link, self.uplink))


def sequential(network: Network, num_workers: int) -> list[float]:
    """The learner sends to one worker after the other."""
    arrivals, now = [], 0.0
    for worker in range(num_workers):
        now += network.hop_s(worker)
        arrivals.append(now)
    return arrivals


def tree(network: Network, num_workers: int) -> list[float]:
    """Whoever has the weights sends them on: the number of holders doubles with every hop (store and forward)."""
    num_hops = num_workers.bit_length()
    ends, now = [], 0.0
    for hop in range(num_hops):
        now += network.hop_s(min(2 ** (hop + 1) - 2, num_workers - 1))
        ends.append(now)
    return [ends[(worker + 1).bit_length() - 1] for worker in range(num_workers)]


def shared_pull(network: Network, num_workers: int) -> list[float]:
    """Every node pulls once, all at the same time; its workers read what came from shared memory."""
    num_remote = math.ceil(num_workers / network.workers_per_node) - 1
    read_s = network.call_s + network.model_bytes / network.memory
    pull_s = 0.0
    if num_remote:
        pull_s = network.call_s + network.model_bytes / min(network.link, network.uplink / num_remote)
    return [read_s + (0.0 if worker < network.workers_per_node else pull_s) for worker in range(num_workers)]


SCHEMES: Mapping[str, Scheme] = {"sequential": sequential, "tree": tree, "shared pull": shared_pull}
