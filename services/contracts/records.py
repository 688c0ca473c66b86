"""The nouns of Trireme: the records that travel between its processes.

Standard library only, so that a reward author needs nothing heavier to read them. Every record is frozen and
keyword-only. Per-token columns are `array.array` (compact to send, and NumPy reads them without a copy):
typecode "i" for token ids and policy versions, "f" for logprobs, "b" for masks.

Invariant: in a `Rollout` all per-token columns have the same length T and position t of each speaks of `token_ids[t]`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, TypeAlias

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "abort"]

REWARD_CONTRACT_VERSION = 1
"""Version of the reward contract that this is; `trireme.reward.v1` holds it."""

NOT_SAMPLED = -1
"""The policy version of a token that no policy sampled: prompt, tool and environment tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt of one epoch, templated and tokenised.

    Attributes:
        id: unique within a run; made of epoch and row, so that it is the same after a resume.
        messages: the chat that was templated; empty for a plain-text prompt.
        text: the text that the policy continues, after templating.
        token_ids: `text` as token ids; what the rollout engine is given.
        reference: ground truth and whatever else a reward needs.
        row: row of the data set, from 0.
        epoch: pass over the data set, from 0.
    """

    id: str
    messages: tuple[Message, ...] = ()
    text: str
    token_ids: array[int]
    reference: Mapping[str, Json] = field(default_factory=dict)
    row: int = 0
    epoch: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How completions are sampled. Logprobs are those of the distribution that these settings define."""

    num_samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_completion_tokens: int
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0

    @property
    def greedy(self) -> Sampling:
        """One completion, of the likeliest token each time."""
        return replace(self, num_samples=1, temperature=0.0, top_p=1.0, top_k=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """An order for one `RolloutGroup`: `sampling.num_samples` completions of `prompt`."""

    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One prompt with one completion of it, token by token.

    Attributes:
        prompt_id: the prompt's id.
        sample_index: place of this completion among the group's samples, from 0.
        token_ids: (T,) prompt tokens, then everything that followed.
        logprobs: (T,) log-probability of each sampled token under the distribution it was drawn from; 0 elsewhere.
        policy_versions: (T,) version of the policy that sampled each token; `NOT_SAMPLED` elsewhere.
        loss_mask: (T,) 1 on tokens that the policy sampled; 0 on prompt, tool and environment tokens.
        num_prompt_tokens: how many leading tokens are the prompt.
        completion: text of the tokens after the prompt, special tokens removed; for rewards and people only.
        finish_reason: why sampling ended.
        turns: what the policy ("assistant") and its environment said, in order; empty for a completion in one piece.
    """

    prompt_id: str
    sample_index: int
    token_ids: array[int]
    logprobs: array[float]
    policy_versions: array[int]
    loss_mask: array[int]
    num_prompt_tokens: int
    completion: str
    finish_reason: FinishReason
    turns: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        columns = (self.logprobs, self.policy_versions, self.loss_mask)
        if any(len(column) != len(self.token_ids) for column in columns):
            raise ValueError(
                f"rollout {self.prompt_id}/{self.sample_index}: {len(self.token_ids)} tokens, but "
                f"{[len(column) for column in columns]} logprobs, policy versions and loss-mask entries"
            )

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_turns(self) -> int:
        """The policy's own."""
        return sum(turn.role == "assistant" for turn in self.turns) or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    """The n rollouts of one prompt: admitted, scored, buffered and trained together or not at all."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def lowest_policy_version(self) -> int:
        """The oldest policy that sampled any token; staleness is the learner's version minus this."""
        versions = (v for rollout in self.rollouts for v in rollout.policy_versions if v != NOT_SAMPLED)
        return min(versions, default=NOT_SAMPLED)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSample:
    """What a reward function is given: one completion and what it answers.

    Attributes:
        id: unique within one request.
        prompt: the text that the policy continued.
        messages: the chat behind it; empty for a plain-text prompt.
        completion: the policy's text, special tokens removed.
        token_ids: the completion's token ids; empty unless the reward asks for them.
        reference: ground truth and whatever else the data set gives.
        policy_version: version of the policy that sampled the completion.
        finish_reason: "length" when the completion was cut at its limit.
        turns: as in `Rollout`; only here can the policy's words be told from what looks like its environment's.
    """

    id: str
    prompt: str = ""
    messages: tuple[Message, ...] = ()
    completion: str
    token_ids: tuple[int, ...] = ()
    reference: Mapping[str, Json] = field(default_factory=dict)
    policy_version: int = 0
    finish_reason: FinishReason = "stop"
    turns: tuple[Message, ...] = ()

    @property
    def answer(self) -> str:
        """What the policy said last: its last turn, or the completion where it has one piece."""
        return self.turns[-1].content if self.turns else self.completion


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReward:
    """A reward for one step of a completion: its characters [start, end), counted in Unicode code points.

    `token` is where the token that ends it lies in the rollout's `token_ids`; None until that was looked up.
    """

    start: int
    end: int
    value: float
    token: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """A finite score, the named parts it was composed of, and optional scores of steps, in order, without overlap.

    `version` is that of what gave it, such as of a model that is replaced while it is served; empty stands for the
    version that the service describes. It is no part of the score: rewards that differ in nothing else are equal.
    """

    value: float
    components: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[StepReward, ...] = ()
    version: str = field(default="", compare=False)


def reward_versions(outcomes: Iterable[Reward | Failure]) -> list[str]:
    """The versions among the rewards, each once."""
    return sorted({outcome.version for outcome in outcomes if isinstance(outcome, Reward)})


class FailureCode(StrEnum):
    """Why a sample has no score."""

    INVALID_SAMPLE = "invalid_sample"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A sample that could not be scored. It is never turned into a number."""

    code: FailureCode
    message: str
    retryable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardDescription:
    """What a reward service says of itself.

    Attributes:
        name: the reward's name; prefix of its metrics.
        version: the reward's own version, recorded with each run.
        needs_token_ids: whether `RewardSample.token_ids` must be filled.
        minimum: smallest value that it can return; None where it has no bound.
        maximum: largest value that it can return; None where it has no bound.
        max_batch_samples: most samples in one `Score` call.
        max_request_bytes: largest `Score` request.
        contract_version: version of the contract that the service keeps.
        gives_steps: whether its rewards may score single steps; None where the service does not say. It tells no reward
            from another, so that servers of one reward agree of which the older say nothing.
    """

    name: str
    version: str = "0"
    needs_token_ids: bool = False
    minimum: float | None = None
    maximum: float | None = None
    max_batch_samples: int = 1024
    max_request_bytes: int = 4 << 20
    contract_version: int = REWARD_CONTRACT_VERSION
    gives_steps: bool | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """A group whose every rollout has a reward of one version: the only thing that a learner trains on.

    Attributes:
        group: the rollouts.
        rewards: one for each rollout, in order, as the reward service gave them.
        baseline: the reward of the policy's greedy answer to the same prompt, which is no part of the group and never
            trained on; None where the algorithm needs none.
    """

    group: RolloutGroup
    rewards: tuple[Reward, ...]
    baseline: float | None = None

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.group.rollouts):
            raise ValueError(
                f"group {self.group.prompt.id}: {len(self.rewards)} rewards for {len(self.group.rollouts)} rollouts"
            )
        if len(reward_versions(self.rewards)) > 1:
            raise ValueError(f"group {self.group.prompt.id}: scored by versions {reward_versions(self.rewards)}")

    @property
    def reward_version(self) -> str:
        """The one version of the reward that scored all of it."""
        return self.rewards[0].version if self.rewards else ""

    @property
    def is_flat(self) -> bool:
        """Whether all rollouts earned the same, so that comparing them with one another teaches nothing."""
        return len({reward.value for reward in self.rewards}) <= 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """One supervised example: `token_ids` (T,), and `loss_mask` (T,) with 1 on the response tokens to be learnt."""

    token_ids: array[int]
    loss_mask: array[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedDemonstrations:
    """What a learner step learns beside its rollouts, and what the mean loss of their tokens and that of the policy on
    its rollouts count there. Without demonstrations the coefficient is 0, and the step learns from its rollouts alone.
    """

    demonstrations: tuple[Demonstration, ...]
    coefficient: float
    policy_weight: float = 1.0

    @property
    def num_tokens(self) -> int:
        """All of their tokens, learnt or not."""
        return sum(len(demonstration.token_ids) for demonstration in self.demonstrations)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """Where one tensor lies in the packed weights: `offset` bytes into bucket number `bucket`."""

    name: str
    dtype: Literal["float32", "bfloat16", "float16"]
    shape: tuple[int, ...]
    bucket: int
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """Token sequences with the logprobs that the new weights must give them.

    Attributes:
        sequences: each (T,) token ids.
        logprobs: for each sequence (T - 1,), the learner's log-probability of tokens 1 … T-1 given those before.
        tolerance: largest mean absolute difference that a worker may find.
    """

    sequences: tuple[array[int], ...]
    logprobs: tuple[array[float], ...]
    tolerance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightManifest:
    """Everything a worker must know to load and verify one version of the weights.

    Attributes:
        version: the policy version these weights are.
        generation: how often the learner went back to a checkpoint; a higher generation may repeat lower versions.
        tensors: where each tensor lies.
        bucket_bytes: size of each bucket.
        checksums: XXH3-64 of each bucket, as 16 hexadecimal digits.
        canary: the final check, on the loaded model itself.
    """

    version: int
    generation: int = 0
    tensors: tuple[TensorEntry, ...]
    bucket_bytes: tuple[int, ...]
    checksums: tuple[str, ...]
    canary: Canary

    @property
    def age(self) -> tuple[int, int]:
        """Of two manifests the one with the greater age was published later."""
        return self.generation, self.version


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """A published version: its manifest, and for each bucket a location that only the named transport understands."""

    transport: str
    manifest: WeightManifest
    locations: tuple[object, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReceipt:
    """A worker's word that it serves `version`: checksums agreed, and the canary differed by `canary_error` on average.

    `stall_s` is the time in which the engine sampled nothing: `load_s`, and its share of `verify_s` (the canary). The
    rest of `verify_s` (checksums) and `fetch_s` pass beside the sampling.
    """

    worker: int
    version: int
    generation: int = 0
    canary_error: float
    fetch_s: float
    load_s: float
    verify_s: float
    stall_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerReport:
    """What one learner step measured, as plain numbers (the same on every rank)."""

    step: int
    metrics: Mapping[str, float]
