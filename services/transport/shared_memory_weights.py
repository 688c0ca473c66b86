"""Weights through Ray's object store: shared memory on a node, copied once to each other node that asks.

The only file of weight transport that knows Ray. Invariant: a worker on the learner's node reads the very bytes that
were published, without a copy; the last two versions stay.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from services.contracts.errors import DeadlineExceeded, WeightSyncError
from services.contracts.records import Publication, WeightManifest

KEPT_VERSIONS = 2


class SharedMemoryWeights:
    """The transport named "shared_memory". Ray must have been started in this process."""

    def __init__(self) -> None:
        # Ray drops an object with its last reference, so these references are what keeps a version.
        self._kept: deque[tuple[object, ...]] = deque(maxlen=KEPT_VERSIONS)

    def publish(self, manifest: WeightManifest, buckets: Sequence[memoryview]) -> Publication:
        """Put each bucket into the object store as one array of bytes."""
        locations: tuple[object, ...] = tuple(ray.put(np.frombuffer(bucket, np.uint8)) for bucket in buckets)
        self._kept.append(locations)
        return Publication(transport="shared_memory", manifest=manifest, locations=locations)

    def fetch(self, publication: Publication, *, timeout_s: float) -> Sequence[memoryview]:
        """Map each bucket from this node's object store; from another node Ray brings it here first."""
        version = publication.manifest.version
        locations: list[Any] = list(publication.locations)  # Any: Ray ships no type for its references
        try:
            arrays = ray.get(locations, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise DeadlineExceeded(
                waited_for=f"the weights of version {version} from Ray's object store",
                waited_s=timeout_s,
                advice="see whether the learner's node still lives, or raise rollout.sync_timeout_s",
            ) from error
        except ray.exceptions.ObjectLostError as error:
            raise WeightSyncError(
                f"the weights of version {version} are gone from Ray's object store ({type(error).__name__}); "
                "have the learner publish them again"
            ) from error
        return [memoryview(array) for array in arrays]
