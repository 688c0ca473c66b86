"""Which of two texts is better, asked in both orders: a preference that turns with the order is none.

It must not know what the comparison is for. Invariant: swapping the two texts swaps the sign of the preference and
changes nothing else.
"""

import asyncio
from dataclasses import dataclass

from pydantic import Field

from reward_server.judges.judge import Judge
from reward_server.judges.question import REASONS, Key, Question
from services.contracts.settings import Section

TASK = """\
You are an impartial judge. You are given a prompt and two answers to it, A and B. Decide which answer is better by \
this measure:

{measure}

Which answer comes first says nothing, nor does its length or how sure it sounds."""
STRENGTHS = (1, 2, 3)
VERDICT = {
    "better": Key(meaning="the better answer, or tie where neither is", values=("A", "B", "tie")),
    "strength": Key(meaning="1 slightly better (or a tie), 2 clearly better, 3 much better", values=STRENGTHS),
}


class ComparisonConfig(Section):
    """By what two answers are compared."""

    measure: str = Field(default="The better answer helps more, is true, and does no harm.", min_length=1)
    """What makes an answer better, in plain words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How strongly the first text is preferred to the second, by each order: -3 to 3, 0 for a tie.

    Attributes:
        forward: with the first text shown as answer A.
        backward: with the first text shown as answer B.
    """

    forward: int
    backward: int

    @property
    def agrees(self) -> bool:
        """Whether both orders give one verdict."""
        return (self.forward > 0) == (self.backward > 0) and (self.forward < 0) == (self.backward < 0)

    @property
    def margin(self) -> float:
        """The mean preference for the first text; 0, a tie, where the orders disagree."""
        return (self.forward + self.backward) / 2 if self.agrees else 0.0

    @property
    def num_for_a(self) -> int:
        """How many of the two verdicts are for whatever was shown as answer A."""
        return (self.forward > 0) + (self.backward < 0)

    @property
    def num_for_b(self) -> int:
        """How many of the two verdicts are for whatever was shown as answer B."""
        return (self.forward < 0) + (self.backward > 0)


async def compare(judge: Judge, *, measure: str, prompt: str, first: str, second: str) -> Comparison:
    """Ask in both orders. Raises `JudgeFault`."""
    forward, backward = await asyncio.gather(
        _preference_for_a(judge, measure, prompt, first, second),
        _preference_for_a(judge, measure, prompt, second, first),
    )
    return Comparison(forward=forward, backward=-backward)


def comparison_question(measure: str, prompt: str, answer_a: str, answer_b: str, *, explain: bool) -> Question:
    """The question in one order."""
    return Question(
        task=TASK.format(measure=measure),
        texts={"PROMPT": prompt, "ANSWER A": answer_a, "ANSWER B": answer_b},
        verdict=({"reasons": REASONS} if explain else {}) | VERDICT,
    )


async def _preference_for_a(judge: Judge, measure: str, prompt: str, answer_a: str, answer_b: str) -> int:
    verdict = await judge.ask(comparison_question(measure, prompt, answer_a, answer_b, explain=judge.config.explain))
    sign = {"A": 1, "B": -1, "tie": 0}[str(verdict["better"])]
    return sign * int(verdict["strength"])
