"""The built-in rewards. A new one is a file here, a line in `REWARDS`, and its test.

Each is a section of options that builds its reward. None may import another, nor know how it is run; those in `SCORERS`
run themselves.
"""

from collections.abc import Mapping

from reward_server.function import RewardOptions
from reward_server.rewards.exact_match import ExactMatch
from reward_server.rewards.judge_pairwise import JudgePairwise
from reward_server.rewards.judge_pointwise import JudgePointwise
from reward_server.rewards.length_penalty import LengthPenalty
from reward_server.rewards.math_answer import MathAnswer
from reward_server.rewards.required_format import RequiredFormat
from reward_server.rewards.reward_model import RewardModel
from reward_server.scorer import ScorerOptions

REWARDS: Mapping[str, type[RewardOptions]] = {
    "exact_match": ExactMatch,
    "judge_pairwise": JudgePairwise,
    "judge_pointwise": JudgePointwise,
    "length_penalty": LengthPenalty,
    "math_answer": MathAnswer,
    "required_format": RequiredFormat,
}
SCORERS: Mapping[str, type[ScorerOptions]] = {
    "reward_model": RewardModel,
}
