"""Serves a reward model: gathers samples into batches by their tokens, and changes over to a new version.

It must not know torch or gRPC. Invariants: samples that are submitted together are scored by one version, which their
scores name, and those who wait for the old version get it; a model runs in a thread, so the server answers meanwhile.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from reward_server.batcher import Batcher
from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.reward_models.options import RewardModelOptions
from reward_server.reward_models.watch import ModelWatch
from reward_server.scorer import FunctionScorer
from services.contracts.errors import UserError
from services.contracts.records import Failure, Reward, RewardDescription, RewardSample
from services.contracts.reward_model import RewardModelCard

WINDOW_BATCHES = 8


class ServableModel(Protocol):
    """One version of a reward model, whole and checked."""

    card: RewardModelCard

    @property
    def tokens_per_character(self) -> float: ...

    def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        """One outcome per sample, in order; called by one thread at a time."""
        ...


Load = Callable[[Path, RewardModelOptions], ServableModel]


class ServedVersion:
    """One version with those who wait for its scores; model and thread are gone with the last of them."""

    def __init__(self, model: ServableModel, options: RewardModelOptions, config: RewardServerConfig) -> None:
        self.card = model.card
        function = RewardFunction(
            model.score, name=options.name, batched=True, minimum=options.minimum, maximum=options.maximum
        )
        self._batcher = Batcher(
            FunctionScorer(function, timeout_s=config.timeout_s, num_threads=1),
            max_batch_cost=options.max_batch_tokens,
            max_wait_s=config.max_wait_s,
            max_pending_samples=config.max_pending_samples,
            max_running=1,
            cost=partial(expected_tokens, model),  # No reference to this object: a model is large, so it goes at once.
            window=WINDOW_BATCHES,
        )

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        return await self._batcher.submit(samples)


class RewardModelScorer:
    """A scorer that holds the model at `options.path`.

    Args:
        load: makes a model of a folder, in a thread; raises `UserError`.

    Attributes:
        versions: the one that is served, and the watch for another.
    """

    batched = False  # Each version gathers its batches itself, by tokens.

    def __init__(self, options: RewardModelOptions, config: RewardServerConfig, load: Load | None = None) -> None:
        load = load or load_model
        self.versions = ModelWatch(options.path, lambda folder: ServedVersion(load(folder, options), options, config))
        self.description = RewardDescription(
            name=options.name, version=f"1-{options.aggregate}", minimum=options.minimum, maximum=options.maximum
        )
        self._reload_every_s = options.reload_every_s
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.versions.start()
        head = self.versions.current.card.head
        self.description = replace(self.description, gives_steps=head == "process")
        if self._reload_every_s:
            self._watching = asyncio.create_task(self.versions.watch(self._reload_every_s))

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def counters(self) -> Mapping[str, float]:
        return {"versions_taken_up": self.versions.num_taken_up, "versions_refused": self.versions.num_refused}

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        return await self.versions.current.score(samples)


def expected_tokens(model: ServableModel, sample: RewardSample) -> int:
    """About how many tokens the model reads of the sample."""
    expected = (len(sample.prompt) + len(sample.completion)) * model.tokens_per_character
    return min(1 + int(expected), model.card.max_tokens)


def load_model(folder: Path, options: RewardModelOptions) -> ServableModel:
    """The model in `folder`. Raises `UserError`."""
    try:
        from reward_server.reward_models.loaded import LoadedModel
    except ModuleNotFoundError as error:
        raise UserError(
            f"the reward reward_model needs {error.name}: pip install 'trireme-rlhf[cpu]' (or [gpu])"
        ) from error
    try:
        return LoadedModel(folder, options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder} does not load as a reward model: {type(error).__name__}: {error}") from error
