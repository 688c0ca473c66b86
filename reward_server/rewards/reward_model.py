"""The score of a trained reward model, from its folder.

It must not import torch: the model is loaded when the server starts, and again when another stands at the path.
"""

from reward_server.config import RewardServerConfig
from reward_server.reward_models.options import RewardModelOptions
from reward_server.reward_models.scorer import RewardModelScorer
from reward_server.scorer import Scorer, ScorerOptions


class RewardModel(RewardModelOptions, ScorerOptions):
    """Scores with a reward model that `trireme reward-model` made."""

    def scorer(self, config: RewardServerConfig) -> Scorer:
        return RewardModelScorer(self, config)
