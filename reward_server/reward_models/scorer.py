"""Serves a reward model: gathers samples into batches by their tokens, and takes up new versions between two of them.

It must not know torch or gRPC. Invariants: each batch is scored by one version, which its scores name; the model runs
in a thread, so the server answers meanwhile; a batch that runs when a new version comes is finished by the old one.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from reward_server.batcher import Batcher
from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.reward_models.options import RewardModelOptions
from reward_server.reward_models.watch import ModelWatch, ServableModel
from reward_server.scorer import FunctionScorer
from services.contracts.errors import UserError
from services.contracts.records import Failure, Reward, RewardSample

WINDOW_BATCHES = 8

Load = Callable[[Path, RewardModelOptions], ServableModel]


class RewardModelScorer:
    """A scorer that holds the model at `options.path`.

    Args:
        load: makes a model of a folder, in a thread; raises `UserError`.

    Attributes:
        models: the model that is served, and the watch for another.
    """

    batched = False  # It gathers its batches itself, by tokens.

    def __init__(self, options: RewardModelOptions, config: RewardServerConfig, load: Load | None = None) -> None:
        function = RewardFunction(
            self._score_batch,
            name=options.name,
            version=f"1-{options.aggregate}",
            batched=True,
            minimum=options.minimum,
            maximum=options.maximum,
        )
        self.description = function.description
        self.models = ModelWatch(options.path, lambda folder: (load or load_model)(folder, options))
        self._reload_every_s = options.reload_every_s
        self._watching: asyncio.Task[None] | None = None
        self._batcher = Batcher(
            FunctionScorer(function, timeout_s=config.timeout_s, num_threads=1),
            max_batch_cost=options.max_batch_tokens,
            max_wait_s=config.max_wait_s,
            max_pending_samples=config.num_threads * config.max_batch_samples,  # What the server hands on at most.
            max_running=1,
            cost=self._expected_tokens,
            window=WINDOW_BATCHES,
        )

    async def start(self) -> None:
        await self.models.start()
        if self._reload_every_s:
            self._watching = asyncio.create_task(self.models.watch(self._reload_every_s))

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        return await self._batcher.submit(samples)

    def _score_batch(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        return self.models.current.score(samples)

    def _expected_tokens(self, sample: RewardSample) -> int:
        model = self.models.current
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
