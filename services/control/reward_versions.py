"""The versions of a reward model that learns while it is used: the one that is served, and the making of the next.

It must not know where pairs come from. Invariants: `latest` leads to a whole model at any time and changes in one move;
it alone says which version is the last, so that what was begun and not ended is begun again.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from pydantic import Field

from rollout_workers.rows import Row
from services.contracts.errors import TriremeError, UserError
from services.contracts.reward_model import read_card
from services.contracts.settings import Section
from services.control import run_folder
from services.control.fresh_pairs import PAIRS_FILE
from services.control.line_file import LineFile
from services.processes.lifetime import kill

LATEST = "latest"
MADE_FILE = "versions.jsonl"
MAX_FAILURES = 3
LOG_LINES_SHOWN = 8
LOG_FILE = "trainer.log"
_VERSIONS = "versions"
_END_WITHIN_S = 30.0
# The trainer ends with this process, however that ends.
_TRAINER = """
import sys
from services.processes.lifetime import die_with_parent
from services.cli.__main__ import main
die_with_parent(int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""

Tell = Callable[[str], None]
Train = Callable[[Path, Path, "AdaptSection"], Awaitable[int]]
"""Trains a version in a folder that has the pairs, from the weights in another; returns an exit code."""


class AdaptSection(Section):
    """The loop: whom it follows, what it retrains, and when."""

    dir: Path
    """Folder that receives pairs and versions; the run's reward_model option `path` is `latest` in it."""
    follow: Path
    """Folder of the run whose samples are learnt from; its metrics.samples_per_step says how many there are."""
    initial: Path
    """Folder of the reward model that is served first."""
    trainer: Path
    """Configuration of `trireme reward-model`; run.dir, data.examples and model.path are given to it."""
    num_versions: int = Field(default=0, ge=0)
    """Versions to make in all; 0 goes on until the followed run has ended."""
    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """A new version whose own evaluation finds less accuracy is not served."""
    poll_s: float = Field(default=2.0, gt=0)
    """How often to look for new samples, in seconds."""
    max_training_s: float = Field(default=3600.0, gt=0)
    """Longest time that one training may take, in seconds."""
    keep_versions: int = Field(default=3, ge=1)
    """Newest versions to keep."""


class RewardVersions:
    """The versions that were made, and the making of the next.

    Attributes:
        number: of the version that is served; 0 for the first.
        num_pairs: how many pairs there were when a version was last made, or tried.
    """

    def __init__(self, config: AdaptSection, tell: Tell, train: Train | None = None) -> None:
        self._config = config
        self._train = train or train_version
        self._latest = config.dir / LATEST
        self._versions = config.dir / _VERSIONS
        self._num_failures = 0
        self.tell = tell
        self.number = 0
        self.num_pairs = 0

    def begin(self) -> None:
        """Serve the first version, or go on with the one that is served. Raises `UserError`: it is no reward model."""
        target = (self._latest if self._latest.is_symlink() else self._config.initial).resolve()
        if read_card(target).template == "chat":
            raise UserError(
                f"the reward model {target} reads chats, and versions learn the text that the policy continued; "
                "train one with data.template: plain"
            )
        if not self._latest.is_symlink():
            self._point_to(target)
        self.number = int(target.parent.name) if target.parent.parent == self._versions.resolve() else 0
        made = self._config.dir / MADE_FILE
        known = [json.loads(line) for line in made.read_text().splitlines()] if made.exists() else []
        self.num_pairs = max((line["num_pairs"] for line in known if line["number"] <= self.number), default=0)

    async def make(self, pairs: Sequence[Row], *, num_pairs: int) -> None:
        """Train the next version, and serve it when it is good enough.

        Raises:
            UserError: the trainer refuses its configuration.
            TriremeError: it failed `MAX_FAILURES` times in a row.
        """
        folder = self._versions / str(self.number + 1)
        shutil.rmtree(folder, ignore_errors=True)  # What a loop that was killed left.
        folder.mkdir(parents=True)
        (folder / PAIRS_FILE).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        self.tell(f"training version {self.number + 1} on {len(pairs)} pairs")
        code = await self._train(folder, self._latest.resolve(), self._config)
        self.num_pairs = num_pairs
        if code != 0:
            return self._failed(folder, code)
        self._num_failures = 0
        accuracy = json.loads((folder / run_folder.SUMMARY_FILE).read_text())["accuracy_after"]
        if accuracy is not None and accuracy < self._config.min_accuracy:
            return self.tell(f"not served: accuracy {accuracy:.1%} is below {self._config.min_accuracy:.1%}")
        return self._serve(folder, accuracy)

    def _serve(self, folder: Path, accuracy: float | None) -> None:
        export = folder / run_folder.EXPORT
        version = read_card(export).version
        made = {"number": self.number + 1, "version": version, "num_pairs": self.num_pairs, "accuracy": accuracy}
        file = LineFile(self._config.dir / MADE_FILE)
        file.append(json.dumps(made).encode())
        file.close()
        self._point_to(export.relative_to(self._config.dir))
        self.number += 1
        self.tell(f"version {self.number} is served: {version}" + ("" if accuracy is None else f", {accuracy:.1%}"))
        for old in self._versions.iterdir():
            if int(old.name) <= self.number - self._config.keep_versions:
                shutil.rmtree(old)

    def _failed(self, folder: Path, code: int) -> None:
        written = (folder / LOG_FILE).read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        text = f"trireme reward-model ended with exit code {code}:\n  " + "\n  ".join(written)
        if code == UserError.exit_code:
            raise UserError(text)
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            raise TriremeError(f"{MAX_FAILURES} trainings in a row failed; the last: {text}")
        self.tell(f"the served version is kept; {text}")

    def _point_to(self, target: Path) -> None:
        """Have `latest` lead to `target`, in one move."""
        self._config.dir.mkdir(parents=True, exist_ok=True)
        new = self._latest.with_name(f".{LATEST}")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(self._latest)


async def train_version(folder: Path, weights: Path, config: AdaptSection) -> int:
    """Run `trireme reward-model` on the pairs in `folder`, from the model in `weights`; returns its exit code.

    Raises:
        TriremeError: it took longer than `config.max_training_s`, and was killed.
    """
    given = {
        "--run.dir": str(folder),
        "--model.path": str(weights),
        "--data.examples": str(folder / PAIRS_FILE),
        "--data.prompt_field": "prompt",
        "--data.chosen_field": "chosen",
        "--data.rejected_field": "rejected",
        "--data.template": "plain",
    }
    flags = [part for flag in given.items() for part in flag]
    command = [sys.executable, "-c", _TRAINER, str(os.getpid()), "reward-model", str(config.trainer), *flags]
    with (folder / LOG_FILE).open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        return await asyncio.wait_for(process.wait(), config.max_training_s)
    except TimeoutError:
        limit = f"run.max_training_s ({config.max_training_s:g} s)"
        raise TriremeError(f"the training of a version took longer than {limit}; see {folder / LOG_FILE}") from None
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    """End the trainer if it still runs, which is given time to end what it started."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        await asyncio.wait_for(process.wait(), _END_WITHIN_S)
    except TimeoutError:
        await kill(process)
