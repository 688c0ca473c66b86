"""Stand-ins for the parts of a run, for unit tests of the other parts. Each implements a Protocol of the contracts."""

import asyncio
import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from services.contracts.records import (
    NOT_SAMPLED,
    Canary,
    Failure,
    LearnerReport,
    Prompt,
    Publication,
    Reward,
    RewardSample,
    Rollout,
    RolloutGroup,
    SampleRequest,
    ScoredGroup,
    SyncReceipt,
    WeightedDemonstrations,
    WeightManifest,
)
from services.contracts.run_status import RunStatus, WorkerStatus
from services.contracts.seeds import sampling_seed


def make_prompt(row: int, *, text: str | None = None) -> Prompt:
    text = f"prompt {row}" if text is None else text
    return Prompt(
        id=f"0-{row}",
        text=text,
        token_ids=array("i", [row + 1, 2, 3]),
        reference={"answer": str(row)},
        row=row,
    )


def make_rollout(
    prompt: Prompt,
    *,
    sample_index: int = 0,
    completion_ids: Sequence[int] = (7, 8),
    completion: str = "text",
    version: int = 0,
) -> Rollout:
    num_prompt, num_completion = len(prompt.token_ids), len(completion_ids)
    return Rollout(
        prompt_id=prompt.id,
        sample_index=sample_index,
        token_ids=prompt.token_ids + array("i", completion_ids),
        logprobs=array("f", [0.0] * num_prompt + [-1.0] * num_completion),
        policy_versions=array("i", [NOT_SAMPLED] * num_prompt + [version] * num_completion),
        loss_mask=array("b", [0] * num_prompt + [1] * num_completion),
        num_prompt_tokens=num_prompt,
        completion=completion,
        finish_reason="stop",
    )


class FakeRollouts:
    """Samples numbers that are a function of the sampling seed; workers finish in an order of the test's choosing.

    Args:
        delay: turns of the event loop that a prompt takes, by its row.
        complete: text of a completion, by prompt and sample index.
    """

    def __init__(
        self,
        *,
        delay: Callable[[int], int] = lambda row: 0,
        complete: Callable[[Prompt, int], str] = lambda prompt, index: str(index),
    ) -> None:
        self.version = -1
        self.requests: list[SampleRequest] = []
        self._delay = delay
        self._complete = complete

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        self.requests.append(request)
        version = self.version
        for _ in range(self._delay(request.prompt.row)):
            await asyncio.sleep(0)
        rollouts = tuple(
            make_rollout(
                request.prompt,
                sample_index=index,
                completion_ids=(self._token(request, index, version),),
                completion=self._complete(request.prompt, index),
                version=version,
            )
            for index in range(request.sampling.num_samples)
        )
        return RolloutGroup(prompt=request.prompt, rollouts=rollouts)

    async def load_weights(self, publication: Publication) -> Sequence[SyncReceipt]:
        self.version = publication.manifest.version
        return [SyncReceipt(worker=0, version=self.version, canary_error=0.0, fetch_s=0.0, load_s=0.0, verify_s=0.0)]

    def _token(self, request: SampleRequest, index: int, version: int) -> int:
        seed = sampling_seed(
            run_seed=request.sampling.seed,
            prompt_id=request.prompt.id,
            sample_index=index,
            policy_version=version,
        )
        return seed % 97


class FakeRewards:
    """Scores with a function of one sample."""

    def __init__(self, score: Callable[[RewardSample], Reward | Failure] = lambda sample: Reward(value=1.0)) -> None:
        self._score = score

    async def score(self, samples: Sequence[RewardSample]) -> Sequence[Reward | Failure]:
        return [self._score(sample) for sample in samples]


class FakeLearner:
    """Remembers what it was given; its whole state is the tokens it trained on, in order."""

    def __init__(self) -> None:
        self.batches: list[list[ScoredGroup]] = []
        self.demonstrations: list[WeightedDemonstrations | None] = []
        self.trained_tokens: list[int] = []

    async def step(
        self, groups: Sequence[ScoredGroup], demonstrations: WeightedDemonstrations | None = None
    ) -> LearnerReport:
        self.batches.append(list(groups))
        self.demonstrations.append(demonstrations)
        for group in groups:
            for rollout in group.group.rollouts:
                self.trained_tokens.extend(rollout.token_ids)
        return LearnerReport(step=len(self.batches), metrics={"policy_loss": 0.5, "sampler_gap/mean": 0.0})

    async def publish(self, version: int) -> Publication:
        canary = Canary(sequences=(), logprobs=(), tolerance=1.0)
        manifest = WeightManifest(version=version, tensors=(), bucket_bytes=(), checksums=(), canary=canary)
        return Publication(transport="fake", manifest=manifest, locations=())

    async def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "tokens.json").write_text(json.dumps(self.trained_tokens))

    async def load(self, folder: Path) -> None:
        self.trained_tokens = json.loads((folder / "tokens.json").read_text())

    async def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


class FakeWorker:
    """One rollout worker: samples like `FakeRollouts`, when the test lets it.

    Args:
        number: its number in receipts.
        error: raised by every call from now on; may be set later.
        open: whether calls end by themselves; else each waits for `release`.
    """

    def __init__(self, number: int = 0, *, error: Exception | None = None, open: bool = True) -> None:
        self.number = number
        self.error = error
        self.rollouts = FakeRollouts()
        self.versions: list[int] = []
        self._gate = asyncio.Event()
        if open:
            self._gate.set()

    def release(self) -> None:
        self._gate.set()

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        group = await self.rollouts.sample(request)
        await self._gate.wait()
        if self.error is not None:
            raise self.error
        return group

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        await self._gate.wait()
        if self.error is not None:
            raise self.error
        (receipt,) = await self.rollouts.load_weights(publication)
        self.versions.append(receipt.version)
        return replace(receipt, worker=self.number, generation=publication.manifest.generation)

    async def health(self) -> int:
        await self._gate.wait()
        if self.error is not None:
            raise self.error
        return self.rollouts.version


class FakeRunControl:
    """A run that remembers what it was asked.

    Args:
        name: the run's name.
        error: raised by every call but `status`.
        open: whether calls end by themselves; else each waits for ever.
    """

    def __init__(self, name: str = "fake", *, error: Exception | None = None, open: bool = True) -> None:
        self.asked: list[str] = []
        self.state = RunStatus(
            name=name,
            phase="running",
            step=3,
            num_steps=10,
            version=3,
            max_staleness=1,
            target_workers=2,
            workers=(
                WorkerStatus(
                    worker=0, phase="serving", version=3, num_outstanding=4, node="node-a", pid=17, is_slow=True
                ),
                WorkerStatus(worker=2, phase="loading", version=NOT_SAMPLED, num_outstanding=0),
            ),
            num_running=8,
            num_waiting=2,
            num_trained=48,
            learner_wait=0.25,
            last_checkpoint=2,
            message="all is well",
        )
        self._error = error
        self._gate = asyncio.Event()
        if open:
            self._gate.set()

    def status(self) -> RunStatus:
        return self.state

    async def scale(self, num_workers: int) -> None:
        await self._take_up(f"scale {num_workers}")
        self.state = replace(self.state, target_workers=num_workers)

    async def pause(self) -> None:
        await self._take_up("pause")
        self.state = replace(self.state, phase="paused")

    async def resume(self) -> None:
        await self._take_up("resume")
        self.state = replace(self.state, phase="running")

    async def checkpoint(self, *, timeout_s: float) -> Path:
        await self._take_up(f"checkpoint {timeout_s:g}")
        return Path("checkpoints") / f"step_{self.state.step}"

    async def drain(self) -> None:
        await self._take_up("drain")
        self.state = replace(self.state, phase="draining")

    async def _take_up(self, what: str) -> None:
        self.asked.append(what)
        await self._gate.wait()
        if self._error is not None:
            raise self._error
