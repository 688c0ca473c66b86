"""One version of a reward model on its device. The only file here that imports torch and transformers.

It must not know requests, versions to come, or the event loop. Invariants: every score is a function of its sample
alone, up to rounding, because padding is on the right and masked; a model that was loaded has all its weights, fits its
tokenizer and gives the scores that its trainer wrote down beside it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from reward_server.batcher import num_fitting
from reward_server.reward_models.options import RewardModelOptions
from reward_server.reward_models.reading import Reading, normalised, read_sample, value_of_steps
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Reward, RewardSample, StepReward
from services.contracts.reward_model import CanarySample, RewardModelCard, read_canary, read_card

MODEL_CLASSES = {"outcome": AutoModelForSequenceClassification, "process": AutoModelForTokenClassification}
CHARACTERS_PER_TOKEN_AT_FIRST = 4


class LoadedModel:
    """The reward model in `folder`. `score` is called by one thread at a time.

    Attributes:
        card: how its scores are read.

    Raises:
        UserError: the folder holds no whole reward model, or one that does not give the scores of its canary.
    """

    def __init__(self, folder: Path, options: RewardModelOptions) -> None:
        self.card = read_card(folder)
        self._options = options
        self._num_tokens, self._num_characters = 1, CHARACTERS_PER_TOKEN_AT_FIRST
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        self._model = _load_model(folder, self.card, options)
        self._tokenizer = _load_tokenizer(folder, self._model)
        self._check(read_canary(folder) or (CanarySample(prompt="1+1=", completion="2"),))

    @property
    def tokens_per_character(self) -> float:
        """Of all that it has read."""
        return self._num_tokens / self._num_characters

    def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        """One outcome per sample, in order."""
        readings = [read_sample(self._tokenizer, self.card, sample) for sample in samples]
        self._num_tokens += sum(len(reading.token_ids) + reading.num_left_out for reading in readings)
        self._num_characters += sum(len(sample.prompt) + len(sample.completion) for sample in samples)
        logits = self._logits(readings)
        return [self._outcome(reading, raw) for reading, raw in zip(readings, logits, strict=True)]

    def _outcome(self, reading: Reading, logits: Sequence[float]) -> Reward | Failure:
        if not logits:
            message = "the reward model has no token to score: the texts are empty, or no step fits max_tokens"
            return Failure(code=FailureCode.INVALID_SAMPLE, message=message)
        scores = normalised(self.card, logits)
        is_process = self.card.head == "process"
        value = value_of_steps(self.card, logits, self._options.aggregate) if is_process else scores[0]
        return Reward(
            value=self._options.clip(value),
            components={"unclipped": value, "truncated": float(reading.num_left_out > 0)},
            steps=tuple(
                StepReward(start=start, end=end, value=score)
                for (start, end), score in zip(reading.spans, scores, strict=is_process)
                if end > start
            ),
            version=self.card.version,
        )

    def _logits(self, readings: Sequence[Reading]) -> list[list[float]]:
        """The raw scores of each reading, found in batches of similar length; none where there is no token."""
        logits: list[list[float]] = [[] for _ in readings]
        lengths = [len(reading.token_ids) for reading in readings]
        left = sorted((i for i, length in enumerate(lengths) if length), key=lengths.__getitem__)
        while left:
            size = num_fitting([lengths[i] for i in left], self._options.max_batch_tokens)
            batch, left = left[:size], left[size:]
            for i, found in zip(batch, self._forward([readings[i] for i in batch]), strict=True):
                logits[i] = found
        return logits

    @torch.inference_mode()
    def _forward(self, readings: Sequence[Reading]) -> list[list[float]]:
        pad_id = self._model.config.get_text_config().pad_token_id
        ids, mask = padded([reading.token_ids for reading in readings], pad_id)
        device = self._model.device
        logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.double().cpu()
        if self.card.head == "outcome":
            return logits.tolist()  # type: ignore[no-any-return]  # (B, 1); tolist has no type
        return [row[list(reading.positions), 0].tolist() for row, reading in zip(logits, readings, strict=True)]

    def _check(self, canary: Sequence[CanarySample]) -> None:
        samples = [RewardSample(id="", prompt=sample.prompt, completion=sample.completion) for sample in canary]
        readings = [read_sample(self._tokenizer, self.card, sample) for sample in samples]
        for sample, logits in zip(canary, self._logits(readings), strict=True):
            scores = normalised(self.card, logits)
            if not all(map(math.isfinite, scores)):
                raise UserError(f"reward model {self.card.version} scores {sample.completion!r:.60} with {scores}")
            if sample.scores and not _agree(scores, sample.scores, self._options.canary_tolerance):
                raise UserError(
                    f"reward model {self.card.version} scores {sample.completion!r:.60} with {scores}, and its trainer "
                    f"wrote {list(sample.scores)}; are all files of one model? (canary_tolerance is "
                    f"{self._options.canary_tolerance:g})"
                )


def padded(sequences: Sequence[array[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) token ids, padded on the right, and the mask with 1 where there is text."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


def _load_model(
    folder: Path, card: RewardModelCard, options: RewardModelOptions
) -> Any:  # Any: transformers is untyped
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    disable_progress_bar()
    model, found = MODEL_CLASSES[card.head].from_pretrained(
        folder,
        dtype=torch.float32,  # Another would become the default of the whole process while this loads.
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise UserError(f"{folder} has no weights for {', '.join(lacking)}: it is no reward model with this head")
    if model.config.num_labels != 1:
        raise UserError(f"the model in {folder} has {model.config.num_labels} labels; a reward model has one")
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and longest < card.max_tokens:
        raise UserError(f"{folder}: max_tokens of the card is {card.max_tokens}, and the model reads {longest}")
    model.config.use_cache = False
    return model.to(device=device, dtype=getattr(torch, options.dtype)).eval()


def _load_tokenizer(folder: Path, model: Any) -> Any:  # Any: transformers is untyped
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    config = model.config.get_text_config()
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer in {folder} has no fast form, which tells where in the text a token stands")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        rows = model.get_input_embeddings().num_embeddings
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings")
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if config.pad_token_id is None:
        raise UserError(f"{folder}: neither config.json nor the tokenizer names a padding token")
    return tokenizer


def _agree(scores: Sequence[float], written: Sequence[float], tolerance: float) -> bool:
    return len(scores) == len(written) and all(
        abs(score - other) <= tolerance for score, other in zip(scores, written, strict=True)
    )
