"""The full state of the learner below one folder, such that a resumed run continues bit for bit.

It must not know how networks are sharded, nor when a checkpoint counts as whole: the control layer commits it.
Invariant: any number of ranks loads a folder. A rank that was there before goes on with its own random states, and one
that was not keeps those that its seed gave it; what is drawn from them (dropout) is all that a new number changes.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo_learner.ranks import Ranks
from ppo_learner.return_moments import ReturnMoments
from services.contracts.errors import CheckpointError

_STATE_FILE = "learner.json"
_TORCH_WRITER = "inline_container.cc"
"""What torch names when the file behind `torch.save` takes no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerState:
    """What is neither weights nor random state.

    Attributes:
        step: learner steps done.
        kl_coefficient: present weight of the KL penalty.
        skipped_in_a_row: updates skipped since the last one that moved the weights.
        return_moments: of all returns so far, where they are normalised.
    """

    step: int
    kl_coefficient: float = 0.0
    skipped_in_a_row: int = 0
    return_moments: ReturnMoments = field(default_factory=ReturnMoments)


def save_state(folder: Path, state: LearnerState, ranks: Ranks) -> None:
    """Write counters and each rank's random states. Every rank calls it."""
    torch.save(_random_states(), folder / f"random_rank_{ranks.rank}.pt")
    if ranks.is_first:
        content = {"world_size": ranks.world_size} | asdict(state)
        (folder / _STATE_FILE).write_text(json.dumps(content, indent=2))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Tell what the disk refuses within the block as `CheckpointError`; torch says it as a RuntimeError of its own."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _TORCH_WRITER not in str(error):
            raise
        raise CheckpointError(f"{folder} could not be written: {error}") from error


def load_state(folder: Path, ranks: Ranks) -> LearnerState:
    """Restore this rank's random states where it has any, and return the rest. Raises `CheckpointError`."""
    content = _read(folder)
    path = folder / f"random_rank_{ranks.rank}.pt"
    if ranks.rank < content["world_size"]:
        if not path.exists():
            raise CheckpointError(f"{path} is missing: the checkpoint is incomplete; resume from an older one")
        _restore_random_states(torch.load(path, weights_only=True))
    return LearnerState(
        step=int(content["step"]),
        kl_coefficient=content["kl_coefficient"],
        skipped_in_a_row=int(content["skipped_in_a_row"]),
        return_moments=ReturnMoments(**content["return_moments"]),
    )


def _read(folder: Path) -> dict[str, Any]:  # Any: JSON
    path = folder / _STATE_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; resume from an older checkpoint") from error
    missing = {"world_size", *(each.name for each in fields(LearnerState))} - content.keys()
    if missing:
        raise CheckpointError(
            f"{path} has no {', '.join(sorted(missing))}: another version of Trireme wrote it; resume with that version"
        )
    return content


def _random_states() -> dict[str, object]:
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, object] = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Any]) -> None:  # Any: what `_random_states` gave
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
