"""Checkpoints of the whole run: all of it, or none.

A checkpoint is `checkpoints/step_N/`: the learner's own files, `state.json`, and last of all `COMMIT`, which holds the
hash of every other file. It is written under another name, flushed to disk, and renamed; a crash in between leaves a
whole checkpoint under that other name, which `finish_commit` renames.

Invariants: a folder with a COMMIT whose hashes agree is whole; older checkpoints go only after the new one is
committed; nothing is loaded before its hash was checked.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.contracts.errors import CheckpointError
from services.control.rollout_buffer import Waiting
from services.control.saved_groups import write_groups

COMMIT_FILE = "COMMIT"
STATE_FILE = "state.json"
WAITING_FILE = "waiting.jsonl"
LEARNER_FOLDER = "learner"
PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """What the controller itself must remember.

    Attributes:
        step: steps trained; also the policy version.
        prompt_position: prompts drawn from the stream so far.
        running: positions in the stream of prompts that were being sampled or scored; they are sampled anew.
        event_counts: the ledger's totals.
        num_events: events in the log when this was the state; later ones are void after a resume.
        accuracy_before: held-out accuracy before the first step, for the final summary.
        evaluation_before: every metric of that evaluation and of the suites.
        scores_before: what each of them measured of every prompt, for the regression gates.
        scores_of: a digest of all that these depend on beside the weights.
        seconds: time spent in the run so far.
        num_samples: completions sampled for the steps so far.
        best_loss: lowest validation loss so far, of a run that keeps the weights that had it.
        best_step: the step after which that was.
    """

    step: int
    prompt_position: int
    running: tuple[int, ...] = ()
    event_counts: Mapping[str, int] = field(default_factory=dict)
    num_events: int = 0
    accuracy_before: float | None = None
    evaluation_before: Mapping[str, float] = field(default_factory=dict)
    scores_before: Mapping[str, Sequence[float]] = field(default_factory=dict)
    scores_of: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    num_samples: int = 0
    best_loss: float | None = None
    best_step: int = 0


async def commit(
    folder: Path,
    state: RunState,
    *,
    waiting: Sequence[Waiting] = (),
    save_learner: Callable[[Path], Awaitable[None]],
    keep: int,
) -> Path:
    """Write a checkpoint below `folder` and return where it lies.

    Args:
        waiting: scored groups that wait for the learner.
        save_learner: writes the learner's files into the folder it is given.
        keep: how many checkpoints stay.

    Raises:
        CheckpointError: when the disk refuses; the checkpoints before stay as they are.
    """
    final = folder / f"step_{state.step}"
    temporary = folder / f".{final.name}{PARTIAL}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        await save_learner(temporary / LEARNER_FOLDER)
        (temporary / STATE_FILE).write_text(json.dumps(asdict(state)))
        write_groups(temporary / WAITING_FILE, waiting)
        _seal(temporary, state.step)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync(folder)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {state.step} could not be written below {folder}: {error}; "
            f"{_advice(folder)}; free some space and use --resume"
        ) from error
    _prune(folder, newest_step=state.step, keep=keep)
    return final


def finish_commit(folder: Path) -> None:
    """Rename a checkpoint that was whole when its process ended; only for the process that holds the run's folder."""
    for found in (path.parent for path in folder.glob(f".step_*{PARTIAL}/{COMMIT_FILE}")):
        final = folder / found.name.removeprefix(".").removesuffix(PARTIAL)
        if not final.exists() and _fault(found) is None:
            found.rename(final)


def newest(folder: Path) -> tuple[Path, RunState, list[str]]:
    """The newest whole checkpoint below `folder`, its state, and what was wrong with each newer one.

    Raises:
        CheckpointError: naming each fault, when none is whole.
    """
    faults: list[str] = []
    for checkpoint in committed(folder):
        fault = _fault(checkpoint)
        if fault is None:
            state = json.loads((checkpoint / STATE_FILE).read_text())
            return checkpoint, RunState(**state | {"running": tuple(state["running"])}), faults
        faults.append(f"{checkpoint.name}: {fault}")
    found = "; ".join(faults) or "there is none"
    raise CheckpointError(f"no whole checkpoint lies in {folder} ({found}); start again with another run.dir")


def committed(folder: Path) -> list[Path]:
    """Checkpoints below `folder` that have a COMMIT, newest first; their hashes are not checked here."""
    found = [path.parent for path in folder.glob(f"step_*/{COMMIT_FILE}")]
    # A copy that somebody put beside them, step_20_good, is none of the run's.
    own = [path for path in found if re.fullmatch(r"step_[0-9]+", path.name)]
    return sorted(own, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def _prune(folder: Path, *, newest_step: int, keep: int) -> None:
    """Remove what is older than the newest `keep`, and what is newer than the newest: a run went back past it."""
    checkpoints = {int(path.name.removeprefix("step_")): path for path in committed(folder)}
    kept = [step for step in checkpoints if step <= newest_step][:keep]
    for step in checkpoints.keys() - kept:
        shutil.rmtree(checkpoints[step])


def _seal(folder: Path, step: int) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {}
    for path in files:
        _sync(path)
        hashes[str(path.relative_to(folder))] = _hash(path)
    commit_file = folder / COMMIT_FILE
    commit_file.write_text(json.dumps({"step": step, "files": hashes}, indent=1))
    for path in (commit_file, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(path)


def _fault(checkpoint: Path) -> str | None:
    try:
        hashes = json.loads((checkpoint / COMMIT_FILE).read_text())["files"]
    except (ValueError, KeyError, TypeError) as error:
        return f"its {COMMIT_FILE} is damaged ({error})"
    if not any(name.startswith(f"{LEARNER_FOLDER}/") for name in hashes):
        return "it has no files of the learner, who wrote them elsewhere"
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _hash(path) != expected:
            return f"{name} has changed since it was written"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _advice(folder: Path) -> str:
    good = committed(folder)
    return f"the last good one is {good[0].name}" if good else "there is no earlier one"
