"""Rewards that a judge gives: the judge's lifetime, and its faults as failures of samples.

It must not know what is asked. Invariant: a fault of the judge leaves as a typed failure.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from reward_server.function import Score
from reward_server.judges.config import JudgeConfig
from reward_server.judges.faults import JudgeFault
from reward_server.judges.judge import Judge, open_judge
from services.contracts.records import FailureCode, Reward, RewardSample


class Judged:
    """The `score`, `opened` and `counters` of a `RewardFunction` that asks a judge.

    Args:
        score: the reward of one sample; may raise `JudgeFault`.
    """

    def __init__(self, config: JudgeConfig, score: Callable[[Judge, RewardSample], Awaitable[Reward]]) -> None:
        self._config = config
        self._score = score
        self._judge: Judge | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Keep the judge open."""
        async with open_judge(self._config) as self._judge:
            yield

    def counters(self) -> Mapping[str, float]:
        """What the judge did and was paid, over all samples."""
        return self._judge.counters() if self._judge else {}

    async def score(self, sample: RewardSample) -> Score:
        assert self._judge is not None, "a judged reward is scored with while it is opened"
        try:
            return await self._score(self._judge, sample)
        except JudgeFault as fault:
            return fault.failure


def reference_text(sample: RewardSample, field: str) -> str:
    """The text or number in a field of the reference. Raises `JudgeFault` where there is none."""
    value = sample.reference.get(field)
    if not isinstance(value, str | int | float) or not str(value).strip():
        message = f"reference.{field} is {value!r:.80}; the judge needs a text there"
        raise JudgeFault(message, code=FailureCode.INVALID_SAMPLE)
    return str(value)


def prompt_text(sample: RewardSample) -> str:
    """What the completion answers: the chat where there is one, else the text that was continued."""
    if [message.role for message in sample.messages] == ["user"]:
        return sample.messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in sample.messages) or sample.prompt
