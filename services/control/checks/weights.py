"""Whether two runs ended in the same weights, bit for bit.

It must not know models: a safetensors file is a length, a JSON header and bytes, and only bytes are compared.
Invariant: exports are compared with exports; only where one is missing are the files of the newest checkpoints
compared, by hash.
"""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

from services.contracts.errors import UserError
from services.control import run_folder, run_state

_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    """Where a tensor lies: `start` to `end` of a file, in bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def first_difference(folder: Path, other: Path) -> str | None:
    """The first way, in words, in which the weights of two runs differ; None when they are equal.

    Raises:
        UserError: there is nothing to compare, or a file is no safetensors file.
        CheckpointError: where checkpoints are compared, and none is whole.
    """
    exports = [run / run_folder.EXPORT for run in (folder, other)]
    if all(any(export.glob("*.safetensors")) for export in exports):
        return _tensor_difference(*(_tensors(export) for export in exports))
    for run in (folder, other):
        if not run_state.committed(run / run_folder.CHECKPOINTS):
            raise UserError(f"{run} has neither an export nor a checkpoint to compare; let it finish first")
    return _checkpoint_difference(folder, other)


def _tensor_difference(ours: dict[str, _Tensor], theirs: dict[str, _Tensor]) -> str | None:
    for name in sorted(ours.keys() ^ theirs.keys()):
        return f"tensor {name} is in the export of one run only"
    for name, mine in sorted(ours.items()):
        other = theirs[name]
        if (mine.dtype, mine.shape) != (other.dtype, other.shape):
            return f"tensor {name} is {mine.dtype} {list(mine.shape)} here and {other.dtype} {list(other.shape)} there"
        if _bytes(mine) != _bytes(other):
            return f"tensor {name} ({mine.dtype} {list(mine.shape)}) has other values"
    return None


def _checkpoint_difference(folder: Path, other: Path) -> str | None:
    (here, state, _), (there, other_state, _) = (
        run_state.newest(run / run_folder.CHECKPOINTS) for run in (folder, other)
    )
    if state.step != other_state.step:
        return f"the newest checkpoint is of step {state.step} here and of step {other_state.step} there"
    ours, theirs = _learner_hashes(here), _learner_hashes(there)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return f"{name} of the checkpoint of step {state.step} differs (an export would tell which tensor)"
    return None


def _learner_hashes(checkpoint: Path) -> dict[str, str]:
    files = json.loads((checkpoint / run_state.COMMIT_FILE).read_text())["files"]
    return {name: digest for name, digest in files.items() if name.startswith(run_state.LEARNER_FOLDER)}


def _tensors(export: Path) -> dict[str, _Tensor]:
    return {name: tensor for path in sorted(export.glob("*.safetensors")) for name, tensor in _header(path).items()}


def _header(path: Path) -> dict[str, _Tensor]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        first = _LENGTH_BYTES + length
        return {
            name: _Tensor(
                path=path,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=first + entry["data_offsets"][0],
                end=first + entry["data_offsets"][1],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); export the run again") from error


def _bytes(tensor: _Tensor) -> bytes:
    if tensor.start == tensor.end:
        return b""
    with tensor.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[tensor.start : tensor.end]
