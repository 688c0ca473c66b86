"""Weights through a folder that the learner and every worker can reach: local shared memory, or a network file system.

It must not know what the bytes mean. Invariant: a version's folder is either whole or absent, because it is written
under another name and renamed once its files are complete; the last two versions stay.
"""

import mmap
import shutil
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from services.contracts.errors import DeadlineExceeded, WeightSyncError
from services.contracts.records import Publication, WeightManifest

KEPT_VERSIONS = 2
_POLL_S = 0.01
_SHARED_MEMORY = Path("/dev/shm")


class DiskWeights:
    """The transport named "disk". Without a folder it takes a private one in this machine's shared memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: deque[Path] = deque()

    def publish(self, manifest: WeightManifest, buckets: Sequence[memoryview]) -> Publication:
        """Write one file a bucket. A version published twice is kept twice, under names of their own."""
        root = self._root()
        root.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"unfinished_{manifest.version}_", dir=root))
        unfinished.chmod(0o755)
        for index, bucket in enumerate(buckets):
            (unfinished / _file_name(index)).write_bytes(bucket)
        finished = unfinished.rename(root / unfinished.name.removeprefix("un"))
        self._kept.append(finished)
        while len(self._kept) > KEPT_VERSIONS:
            # A worker that still reads it keeps its memory map; only the name goes.
            shutil.rmtree(self._kept.popleft(), ignore_errors=True)
        locations = tuple(str(finished.absolute() / _file_name(index)) for index in range(len(buckets)))
        return Publication(transport="disk", manifest=manifest, locations=locations)

    def fetch(self, publication: Publication, *, timeout_s: float) -> Sequence[memoryview]:
        """Memory-map each bucket. Waits for files that a network file system does not show yet."""
        deadline = time.monotonic() + timeout_s
        sizes = publication.manifest.bucket_bytes
        return [
            _map(_wait_for(Path(str(location)), deadline, timeout_s), size)
            for location, size in zip(publication.locations, sizes, strict=True)
        ]

    def _root(self) -> Path:
        if self._folder is None:
            parent = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
            self._folder = Path(tempfile.mkdtemp(prefix="trireme_weights_", dir=parent))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder


def _file_name(index: int) -> str:
    return f"bucket_{index:05d}"


def _wait_for(path: Path, deadline: float, timeout_s: float) -> Path:
    while not path.exists():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                waited_for=f"weights in {path}",
                waited_s=timeout_s,
                advice="give learner and workers a folder that all of them can read, or fetch a newer version",
            )
        time.sleep(_POLL_S)
    return path


def _map(path: Path, size: int) -> memoryview:
    if path.stat().st_size != size:
        raise WeightSyncError(f"{path} has {path.stat().st_size} bytes, published with {size}; fetch it again")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
