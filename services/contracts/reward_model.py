"""What the folder of a reward model holds beside its Hugging Face files: the card, and the canary where there is one.

The folder itself loads in transformers: `AutoModelForSequenceClassification` with one label for an outcome head (its
logit is the raw score of a whole completion), `AutoModelForTokenClassification` with one label for a process head (the
logit at a step's last token is the raw score of that step), with the tokenizer beside it. The card must not know how a
model is trained or served. Invariant: a served score is (raw − mean) / std, with the statistics that the trainer found.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from services.contracts.errors import UserError
from services.contracts.settings import Section

CARD_FILE = "reward_model.json"
CANARY_FILE = "reward_canary.jsonl"

RewardHead = Literal["outcome", "process"]


class RewardModelCard(Section):
    """How the scores of a reward model are to be read."""

    format: Literal[1] = 1
    """Version of this file's layout."""
    head: RewardHead = "outcome"
    """`outcome` scores a completion, `process` each of its steps."""
    version: str
    """Name of these weights, recorded with every score; a digest of the weights where the user gives none."""
    mean: float = Field(default=0.0, allow_inf_nan=False)
    """Mean raw score on the data that the statistics were taken from."""
    std: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Standard deviation of the raw score there."""
    template: Literal["chat", "plain"] = "plain"
    """Whether the text is made with the tokenizer's chat template, or is prompt and completion one after the other."""
    max_tokens: int = Field(ge=2)
    """Longest text that the model is given, in its own tokens; of a longer one the beginning is left out."""
    step_separator: str = Field(default="\n", min_length=1)
    """What ends a step of a completion, for a process head; the separator belongs to the step before it."""


class CanarySample(Section):
    """A line of `reward_canary.jsonl`: what the trainer's model gave a sample, which a server must find again."""

    prompt: str = ""
    """The text that was continued; in a chat the user's one turn."""
    completion: str
    """Its continuation."""
    scores: tuple[float, ...] = ()
    """The normalised score of the completion, or of each of its steps for a process head."""


def read_card(folder: Path) -> RewardModelCard:
    """The card of the reward model in `folder`.

    Raises:
        UserError: there is none, or it is not valid.
    """
    path = folder / CARD_FILE
    try:
        return RewardModelCard.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{folder} is no reward model: {path} cannot be read ({error.strerror}); `trireme reward-model` makes one"
        ) from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"{path} is not a valid reward model card: {faults}") from error


def read_canary(folder: Path) -> tuple[CanarySample, ...]:
    """The canary beside the model in `folder`; nothing where the trainer wrote none.

    Raises:
        UserError: it is not valid.
    """
    path = folder / CANARY_FILE
    try:
        # As bytes: in text, characters that JSON leaves as they are would end a line as well, such as U+2028.
        return tuple(CanarySample.model_validate_json(line) for line in path.read_bytes().splitlines())
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        raise UserError(f"{path} is not a valid canary: {error.errors()[0]['msg']}") from error


def write_canary(folder: Path, samples: Iterable[CanarySample]) -> None:
    """Write the canary beside the model in `folder`."""
    lines = "".join(f"{sample.model_dump_json()}\n" for sample in samples)
    (folder / CANARY_FILE).write_text(lines, encoding="utf-8")


def write_card(folder: Path, card: RewardModelCard) -> None:
    """Write `card` beside the model in `folder`."""
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n")
