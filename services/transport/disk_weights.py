"""Weights through a folder that the learner and every worker can reach: local shared memory, or a network file system.

It must not know what the bytes mean. Invariants: a version's folder is either whole or absent, because it is written
under another name and renamed once its files are complete; the last two versions stay; what a publisher left behind
that was killed goes once another begins on its machine, as the kernel has then let go of its lock.
"""

import fcntl
import mmap
import os
import shutil
import socket
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from services.contracts.errors import DeadlineExceeded, WeightSyncError
from services.contracts.records import Publication, WeightManifest

KEPT_VERSIONS = 2
_POLL_S = 0.01
_SHARED_MEMORY = Path("/dev/shm")
_LOCK = "publisher"
"""File that a publisher holds locked in its folder for as long as it lives."""


class DiskWeights:
    """The transport named "disk".

    Args:
        folder: where a publisher makes one of its own; by default in this machine's shared memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._own: Path | None = None
        self._kept: deque[Path] = deque()

    def publish(self, manifest: WeightManifest, buckets: Sequence[memoryview]) -> Publication:
        """Write one file a bucket. A version published twice is kept twice, under names of their own."""
        root = self._root()
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
        if self._own is None:
            local = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
            parent = self._folder or local
            parent.mkdir(parents=True, exist_ok=True)
            _remove_left_over(parent)
            self._own = Path(tempfile.mkdtemp(prefix=_prefix(), dir=parent))
            if self._folder is not None:
                self._own.chmod(0o755)
            weakref.finalize(self, _give_up, self._own, _lock(self._own))
        return self._own


def _prefix() -> str:
    """Of this machine's publishers: where folders are shared, locks of other machines may not be seen."""
    return f"trireme_weights_{socket.gethostname()}_"


def _lock(folder: Path) -> int:
    """Lock a new folder. The lock gets its name once it holds; without one, nobody takes the folder for left over."""
    file = os.open(folder / f"{_LOCK}_begins", os.O_CREAT | os.O_RDWR, 0o600)
    with suppress(OSError):  # A file system without locks.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / f"{_LOCK}_begins").rename(folder / _LOCK)
    return file


def _remove_left_over(parent: Path) -> None:
    for folder in parent.glob(f"{_prefix()}*"):
        with suppress(OSError), (folder / _LOCK).open("r+") as file:  # Held, of another user, or gone meanwhile.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _give_up(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _file_name(index: int) -> str:
    return f"bucket_{index:05d}"


def _wait_for(path: Path, deadline: float, timeout_s: float) -> Path:
    while not path.exists():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                waited_for=f"weights in {path}",
                waited_s=timeout_s,
                advice="set weights.folder to one that learner and workers can read, or fetch a newer version",
            )
        time.sleep(_POLL_S)
    return path


def _map(path: Path, size: int) -> memoryview:
    if path.stat().st_size != size:
        raise WeightSyncError(f"{path} has {path.stat().st_size} bytes, published with {size}; fetch it again")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
