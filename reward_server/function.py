"""A reward as code: the function that scores, and what it says of itself.

It must not know how or where the function is run. Invariant: a `RewardFunction` that was built has a valid description.
"""

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import TypeAlias

from services.contracts.errors import UserError
from services.contracts.records import Failure, Reward, RewardDescription, RewardSample
from services.contracts.settings import Section
from services.transport.reward_validation import fault_in_description

Score: TypeAlias = float | Reward | Failure
ScoreSample: TypeAlias = Callable[[RewardSample], Score | Awaitable[Score]]
ScoreBatch: TypeAlias = Callable[[Sequence[RewardSample]], Sequence[Score] | Awaitable[Sequence[Score]]]


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A scoring function and its properties.

    Attributes:
        score: takes one sample, or a sequence of samples when `batched`; a plain or an async function.
        name: prefix of its metrics; the function's own name where it is not given.
        batched: whether `score` takes and returns a sequence.
        version: recorded with each run; change it when scores change.
        needs_token_ids: whether the completion's token ids must be sent.
        minimum: smallest value it can return; None where it has no bound.
        maximum: largest value it can return; None where it has no bound.
        gives_steps: whether its rewards may score single steps; None where that is not known.
        isolate: whether it may hang in a way that only killing its process ends.
        opened: makes a context that is entered before the first sample is scored and left after the last.
        counters: totals of its own for the server's metrics, by name; each only grows.
    """

    score: ScoreSample | ScoreBatch
    _: KW_ONLY
    name: str = ""
    batched: bool = False
    version: str = "0"
    needs_token_ids: bool = False
    minimum: float | None = None
    maximum: float | None = None
    gives_steps: bool | None = None
    isolate: bool = False
    opened: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    counters: Callable[[], Mapping[str, float]] = dict

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise UserError(f"a reward must be a function, not {self.score!r}")
        fault = fault_in_description(self.description)
        if fault is not None:
            raise UserError(f"reward {self.name!r}: {fault}")

    @property
    def description(self) -> RewardDescription:
        return RewardDescription(
            name=self.name or getattr(self.score, "__name__", type(self.score).__name__).strip("<>"),
            version=self.version,
            needs_token_ids=self.needs_token_ids,
            minimum=self.minimum,
            maximum=self.maximum,
            gives_steps=self.gives_steps,
        )

    @property
    def is_async(self) -> bool:
        function = self.score if inspect.isroutine(self.score) else getattr(self.score, "__call__", None)  # noqa: B004
        return inspect.iscoroutinefunction(self.score) or inspect.iscoroutinefunction(function)


class RewardOptions(Section):
    """The options of a configurable reward, which build it: what every built-in is, and a user's own may be."""

    @abstractmethod
    def reward(self) -> RewardFunction:
        """The reward with these options."""
