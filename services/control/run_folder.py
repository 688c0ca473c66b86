"""A run's folder: who holds it, what lies in it, and its summary.

It must not know what a run does. Invariant: one live process holds a folder at a time, and a folder with a run in it is
never written over: it is resumed, or the user names another.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from pydantic import BaseModel

from services.contracts.errors import UserError
from services.contracts.records import Json

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
EVALUATION_FILE = "evaluation.json"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
_LOCK_FILE = ".lock"


@contextmanager
def hold(folder: Path, *, resume: bool) -> Iterator[None]:
    """Hold `folder` for one run.

    Raises:
        UserError: when another process holds it, when it has a run in it and `resume` is off, or the other way round.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK_FILE).open("a+")
    except OSError as error:
        raise UserError(f"the run's folder {folder} cannot be written: {error.strerror}; set run.dir") from error
    with lock:
        _lock(lock.fileno(), folder)
        if has_run(folder) and not resume:
            raise UserError(f"{folder} already holds a run; go on with --resume, or set run.dir to a new folder")
        if resume and not has_run(folder):
            raise UserError(f"--resume: {folder} holds no run to go on with; check run.dir")
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


def has_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`, whole or not."""
    metrics = folder / METRICS_FILE
    return (folder / CHECKPOINTS).exists() or (metrics.exists() and metrics.stat().st_size > 0)


def is_held(folder: Path) -> bool:
    """Whether a live process holds `folder`."""
    try:
        lock = (folder / _LOCK_FILE).open("rb")
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_config(folder: Path, config: BaseModel) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text(text)


def write_summary(folder: Path, summary: Mapping[str, Json], *, name: str = SUMMARY_FILE) -> None:
    (folder / name).write_text(json.dumps(dict(summary), indent=2) + "\n")


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = (folder / _LOCK_FILE).read_text() or "another process"
        raise UserError(f"{folder} is in use by {holder}; wait for it, or set run.dir to another folder") from error
