"""Whether a language model prefers the completion to a reference answer: 1 yes, 0.5 a tie, 0 no.

Rewards are given sample by sample, so the opponent is an answer from the data, the same for a whole group. The judge is
asked in both orders; where it contradicts itself, that is a tie. It must not know the endpoint or how a reply is read.
"""

from reward_server.function import RewardFunction, RewardOptions
from reward_server.judges.comparison import ComparisonConfig, compare
from reward_server.judges.config import JudgeConfig
from reward_server.judges.judge import Judge
from reward_server.judges.judged import Judged, prompt_text, reference_text
from services.contracts.records import Reward, RewardSample


class JudgePairwise(RewardOptions):
    """Has a judge compare each completion with a field of the reference, in both orders."""

    judge: JudgeConfig
    """The model that judges, and the limits of asking it."""
    comparison: ComparisonConfig = ComparisonConfig()
    """By what the two are compared."""
    reference_field: str = "answer"
    """Field of the reference that holds the answer to compare with."""

    def reward(self) -> RewardFunction:
        judged = Judged(self.judge, self._score)
        return RewardFunction(
            judged.score,
            name="judge_pairwise",
            version="1",
            minimum=0.0,
            maximum=1.0,
            opened=judged.opened,
            counters=judged.counters,
        )

    async def _score(self, judge: Judge, sample: RewardSample) -> Reward:
        comparison = await compare(
            judge,
            measure=self.comparison.measure,
            prompt=prompt_text(sample),
            first=sample.completion,
            second=reference_text(sample, self.reference_field),
        )
        margin = comparison.margin
        return Reward(
            value=0.5 + 0.5 * ((margin > 0) - (margin < 0)),
            components={
                "margin": margin,
                "disagreement": float(not comparison.agrees),
                "chose_a": comparison.num_for_a / 2,
                "chose_b": comparison.num_for_b / 2,
            },
        )
