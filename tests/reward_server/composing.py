"""Parts for tests of composed rewards: constants, failures, and numbers read from the completion."""

from typing import Any

from reward_server.function import RewardFunction
from reward_server.parts import Part
from reward_server.scorer import FunctionScorer
from services.contracts.records import Failure, FailureCode, RewardSample

BROKEN = Failure(code=FailureCode.INTERNAL, message="broken")
LATE = Failure(code=FailureCode.TIMEOUT, message="too slow", retryable=True)


class Counting(FunctionScorer):
    """Remembers which samples it was asked about."""

    def __init__(self, function: RewardFunction) -> None:
        super().__init__(function, timeout_s=5.0, num_threads=1)
        self.asked: list[str] = []

    async def score(self, samples: Any) -> Any:  # Any: as in the class above
        self.asked += [sample.id for sample in samples]
        return await super().score(samples)


def part(name: str, returned: object, weight: float = 1.0, **settings: Any) -> Part:
    """A part that gives each sample `returned`, or what that returns for the sample; `settings` are of either kind."""
    of_part = {key: settings.pop(key) for key in ("shaping", "on_failure", "gate", "when") if key in settings}

    async def score(sample: RewardSample) -> Any:
        return returned(sample) if callable(returned) else returned

    function = RewardFunction(score, name=name, **settings)
    return Part(scorer=Counting(function), label=name, weight=weight, **of_part)


def asked(one: Part) -> list[str]:
    assert isinstance(one.scorer, Counting)
    return one.scorer.asked
