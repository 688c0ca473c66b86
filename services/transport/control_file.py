"""`control.json` in a run's folder: where the live run answers its operator, and the token that it wants to see.

It must not know gRPC or what can be asked. Invariants: only the run's owner can read the file; it is there in whole or
not at all; and nobody is sent to a run whose process is known to be gone.
"""

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.contracts.errors import UserError

CONTROL_FILE = "control.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlFile:
    """What the file says.

    Attributes:
        address: HOST:PORT on the run's machine, unencrypted.
        public_address: HOST:PORT for other machines, behind TLS; empty where there is none.
        token: what each call must carry.
        pid: the run's process.
        host: name of its machine.
    """

    address: str
    token: str = field(repr=False)
    public_address: str = ""
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)


@contextmanager
def announce(folder: Path, entry: ControlFile) -> Iterator[None]:
    """Have the file in `folder` for as long as the block lasts; what a killed run left there is written over."""
    path = folder / CONTROL_FILE
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{CONTROL_FILE}-")  # readable by the owner alone
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(entry), file, indent=2)
        Path(name).replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; set run.dir to a folder that can") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find_live(folder: Path) -> ControlFile:
    """The file of the live run in `folder`.

    Raises:
        UserError: when the folder holds no run, none that is live, or one on another machine; says how to go on.
    """
    entry = _read(folder)
    if entry.host != platform.node():
        way = f"give its address {entry.public_address}" if entry.public_address else "set control.address for it"
        raise UserError(f"the run in {folder} is on machine {entry.host}; run this command there, or {way}")
    if not _is_alive(entry.pid):
        raise UserError(f"the run in {folder} is not live: its process {entry.pid} is gone; {_way_on(folder)}")
    return entry


def _read(folder: Path) -> ControlFile:
    path = folder / CONTROL_FILE
    try:
        values = json.loads(path.read_text())
        entry = ControlFile(**values)
        if not isinstance(entry.pid, int) or entry.pid < 1:
            raise ValueError(f"pid {entry.pid!r}")
    except FileNotFoundError as error:
        if not (folder / "config.yaml").exists():
            raise UserError(f"{folder} holds no run; give the folder that run.dir names") from error
        raise UserError(
            f"the run in {folder} cannot be asked: it has no {CONTROL_FILE}, so it has ended, has not begun to answer, "
            "or is of a command that answers nobody while it works (all but train), and whose metrics.jsonl, if any, "
            "tells how far it is"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; only the run's own user may ask of it") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged, or of another version of Trireme: {error}") from error
    return entry


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")  # killed, and only not yet taken note of by its parent


def _way_on(folder: Path) -> str:
    if any(folder.glob("checkpoints/step_*/COMMIT")):
        return f"where it was stopped early, `trireme train {folder / 'config.yaml'} --resume` goes on"
    return "it had saved no checkpoint, so there is nothing to go on from: remove the folder, or name another run.dir"
