"""The built-in rewards. A new one is a file here, a line in `REWARDS`, and its test.

Each is a section of options that builds its reward. None may import another, nor know how it is run; those in `SCORERS`
run themselves.
"""

from collections.abc import Mapping

from reward_server.function import RewardOptions
from reward_server.rewards.code_execution import CodeExecution
from reward_server.rewards.exact_match import ExactMatch
from reward_server.rewards.instruction_constraints import InstructionConstraints
from reward_server.rewards.json_schema import JsonSchema
from reward_server.rewards.judge_pairwise import JudgePairwise
from reward_server.rewards.judge_pointwise import JudgePointwise
from reward_server.rewards.language import Language
from reward_server.rewards.length_penalty import LengthPenalty
from reward_server.rewards.math_answer import MathAnswer
from reward_server.rewards.regular_expression import RegularExpression
from reward_server.rewards.repetition import Repetition
from reward_server.rewards.required_format import RequiredFormat
from reward_server.rewards.reward_model import RewardModel
from reward_server.scorer import ScorerOptions

REWARDS: Mapping[str, type[RewardOptions]] = {
    "exact_match": ExactMatch,
    "instruction_constraints": InstructionConstraints,
    "json_schema": JsonSchema,
    "judge_pairwise": JudgePairwise,
    "judge_pointwise": JudgePointwise,
    "language": Language,
    "length_penalty": LengthPenalty,
    "math_answer": MathAnswer,
    "regular_expression": RegularExpression,
    "repetition": Repetition,
    "required_format": RequiredFormat,
}
SCORERS: Mapping[str, type[ScorerOptions]] = {
    "code_execution": CodeExecution,
    "reward_model": RewardModel,
}
