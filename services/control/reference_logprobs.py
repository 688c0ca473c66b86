"""What the initial policy gives the completions of a run, computed once and kept in the run's folder.

So no reference model stays in memory, and a resumed run goes on with the numbers that it began with. It must not know
a loss. Invariants: the file appears whole or not at all; its numbers are used only for the weights and the token ids
that they were computed with.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from services.contracts.errors import UserError
from services.contracts.preference_example import PreferenceExample
from services.contracts.settings import ModelConfig
from services.control.learner_group import LearnerGroup
from services.control.weights_digest import weights_digest

REFERENCE_FILE = "reference.safetensors"
_LOGPROBS = "logprobs"


class ReferenceLogprobs:
    """The reference logprobs of some rows: in a file, or still to be computed.

    Args:
        folder: the run's folder.
        model: the initial policy.
        examples: the rows; their token ids hold all that data, tokenizer, template and longest sequence decided.
    """

    def __init__(self, folder: Path, model: ModelConfig, examples: Sequence[PreferenceExample]) -> None:
        self._path = folder / REFERENCE_FILE
        self._examples = examples
        self._model = f"{model.path} ({_identity(model)}, {model.dtype})"
        self._rows = _digest(examples)
        self._found: Sequence[float] | None = None

    def look(self) -> None:
        """Take up what an earlier start of the run left.

        Raises:
            UserError: it was computed with another model than this run starts from.
        """
        if not self._path.exists():
            return
        try:
            with safe_open(self._path, "np") as file:
                written = dict(file.metadata() or {})
                logprobs = file.get_tensor(_LOGPROBS).tolist()
        except (SafetensorError, OSError):
            return  # Damaged: computed anew.
        if written.get("model") != self._model:
            raise UserError(
                f"{self._path} holds logprobs of the model {written.get('model')}, and this run starts from "
                f"{self._model}; set model.path and model.dtype back, or remove the file to learn against other weights"
            )
        if written.get("rows") == self._rows:
            self._found = logprobs

    async def complete(
        self, learner: LearnerGroup, *, rows_per_call: int, tell: Callable[[str], None]
    ) -> list[PreferenceExample]:
        """The rows with their reference logprobs, computed by a learner that has the initial weights if need be."""
        if self._found is None:
            tell(f"computing the reference logprobs of {len(self._examples)} rows")
            self._found = await _compute(self._examples, learner, rows_per_call=rows_per_call)
            self._write(self._found)
        else:
            tell(f"reference logprobs taken from {self._path}")
        numbers = iter(self._found)
        return [
            replace(example, reference=tuple(next(numbers) for _ in example.sequences)) for example in self._examples
        ]

    def _write(self, logprobs: Sequence[float]) -> None:
        partial = self._path.with_suffix(".partial")
        save_file(
            {_LOGPROBS: np.array(logprobs, dtype=np.float32)},
            partial,
            metadata={"model": self._model, "rows": self._rows},
        )
        partial.rename(self._path)


async def _compute(examples: Sequence[PreferenceExample], learner: LearnerGroup, *, rows_per_call: int) -> list[float]:
    """For each row the logprobs of its completions, and behind them of the unrelated one."""
    found: list[float] = []
    for begin in range(0, len(examples), rows_per_call):
        some = examples[begin : begin + rows_per_call]
        own = iter(await learner.answers(some))
        swapped = [replace(row, completions=(row.unrelated,)) for row in some if row.unrelated is not None]
        unrelated = iter(await learner.answers(swapped) if swapped else ())
        for row in some:
            found += [next(own) for _ in row.completions]
            found += [next(unrelated)] if row.unrelated is not None else []
    return found


def _identity(model: ModelConfig) -> str:
    """Of a folder a digest of its weights, of a hub model its revision."""
    folder = Path(model.path)
    return f"weights {weights_digest(folder)}" if folder.is_dir() else f"revision {model.revision}"


def _digest(examples: Sequence[PreferenceExample]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        for sequence in example.sequences:
            digest.update(json.dumps([len(sequence.token_ids), sequence.loss_mask.index(1)]).encode())
            digest.update(sequence.token_ids.tobytes())
    return digest.hexdigest()
