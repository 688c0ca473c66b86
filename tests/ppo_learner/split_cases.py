"""Everything that can be learnt, as short runs that tests split in different ways.

The cases come from the dicts that name losses and estimators, so what is added there is a case without further ado.
Invariant: on two ranks the loads of every case are unequal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ppo_learner.aggregation import AGGREGATIONS
from ppo_learner.algorithms import ALGORITHMS
from ppo_learner.config import LearnerConfig
from ppo_learner.demonstrations import DemonstrationTask
from ppo_learner.distillation import DistillationTask
from ppo_learner.divergences import DIVERGENCES
from ppo_learner.importance import IMPORTANCE_CORRECTIONS
from ppo_learner.kl import KL_ESTIMATORS
from ppo_learner.learner import LearnerRank
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.preference_algorithms import PREFERENCE_ALGORITHMS
from ppo_learner.preference_config import PreferenceConfig
from ppo_learner.preference_training import PreferenceTask
from ppo_learner.proximal import PROXIMAL_POLICIES
from ppo_learner.reward_config import RewardModelConfig
from ppo_learner.reward_objectives import REWARD_OBJECTIVES
from ppo_learner.reward_training import RewardModelTask
from ppo_learner.supervised import SupervisedRank
from ppo_learner.supervised_config import SupervisedConfig
from ppo_learner.task import Task
from services.contracts.reward_example import RewardExample
from tests.ppo_learner.builders import random_groups, start_rank, weights_of
from tests.ppo_learner.supervised_ranks import start_supervised
from tests.ppo_learner.test_preference_training import make as make_preferences
from tests.ppo_learner.test_reward_training import make_lists, make_steps
from tests.ppo_learner.test_supervised import make_demonstrations
from tests.tiny import write_tiny_model

COUNTS = (7, 1, 6)
"""Examples of each supervised step: uneven shares for two ranks, and nothing for one of them."""
TWO_UPDATES = {"num_epochs": 2, "critic_lr": 1e-3, "entropy_coefficient": 0.01}
"""In the second one no probability ratio is 1."""
VALUE_HEAD = {"critic": "value_head", "normalise_returns": True, "value_huber_delta": 0.5}
KL = {"algorithm": "reinforce", "kl_coefficient": 0.1}
IN_LOSS = {"kl_placement": "loss"}
ROLLOUTS: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": name} for name in ALGORITHMS},
    **{f"aggregation_{name}": VALUE_HEAD | {"loss_aggregation": name} for name in AGGREGATIONS},
    **{f"kl_{name}": KL | {"kl_estimator": name} for name in KL_ESTIMATORS},
    # k1 is refused there: its gradient has a mean of zero.
    **{f"kl_loss_{name}": KL | IN_LOSS | {"kl_estimator": name} for name in KL_ESTIMATORS if name != "k1"},
    **{f"correction_{name}": {"algorithm": "grpo", "importance_correction": name} for name in IMPORTANCE_CORRECTIONS},
    **{
        f"proximal_{name}": {
            "algorithm": "gspo",
            "proximal": name,
            "importance_correction": "token_tis" if name == "interpolated" else "none",
        }
        for name in PROXIMAL_POLICIES
    },
    "option_dual_clip": {"algorithm": "grpo", "dual_clip": 3.0},
    "option_lead": {"algorithm": "grpo", "difficulty_weighting": True, "length_penalty": 0.05},
    "option_overlong": {"algorithm": "dapo", "overlong_tokens": 8, "overlong_limit": 24},
    "option_turns": {"algorithm": "ppo", "turn_gamma": 0.5, "turn_gae_lambda": 0.25},
    "option_values": {"critic": "value_head", "value_clip": None},
}


def lists_of_two_sizes(seed: int, *, count: int) -> list[RewardExample]:
    return [*make_lists(seed, count=count - count // 2, size=3), *make_lists(seed + 10, count=count // 2, size=2)]


JUDGED: dict[str, Callable[..., Sequence[Any]]] = {
    "pairs": make_lists,
    "lists": lists_of_two_sizes,
    "outcomes": partial(make_lists, size=1),
    "steps": make_steps,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Settings, and what is learnt in each step: groups of rollouts, or a task's examples."""

    config: type[OptimizerConfig]
    settings: dict[str, Any]
    steps: list[Sequence[Any]]
    task: type[Task] | None = None

    def start(self, model: Path, split: dict[str, Any], place: dict[str, int]) -> LearnerRank | SupervisedRank:
        settings = {"lr": 1e-3} | self.settings | split
        if "teacher" in settings:
            settings["teacher"] = {"path": str(teacher_of(model))} | settings["teacher"]
        learner = self.config.model_validate(settings)
        if self.task:
            return start_supervised(self.task, model, learner, **place)
        assert isinstance(learner, LearnerConfig)
        return start_rank(learner, model, **place)


def write_models(folder: Path) -> Path:
    """Write the model of all cases below `folder`, and a wider one beside it for them to learn from."""
    model = write_tiny_model(folder / "model")
    write_tiny_model(teacher_of(model), seed=3, hidden_size=96)
    return model


def teacher_of(model: Path) -> Path:
    return model.parent / "teacher"


def rollouts(settings: dict[str, Any]) -> Case:
    steps = [random_groups(0), random_groups(10, num_groups=1, group_size=3)]
    return Case(config=LearnerConfig, settings=TWO_UPDATES | settings, steps=steps)


def supervised(
    config: type[OptimizerConfig], task: type[Task], make: Callable[..., Sequence[Any]], **settings: Any
) -> Case:
    steps = [make(step, count=count) for step, count in enumerate(COUNTS)]
    return Case(config=config, settings=settings, steps=steps, task=task)


def preferences(name: str) -> Case:
    beside = {"nll_weight": 0.5} if "nll_weight" in PREFERENCE_ALGORITHMS[name].settings else {}
    examples = partial(make_preferences, {"algorithm": name})
    return supervised(PreferenceConfig, PreferenceTask, examples, algorithm=name, **beside)


def distillation(direction: str) -> Case:
    teacher = {"direction": direction, "weight": 0.5, "temperature": 2.0}
    return supervised(SupervisedConfig, DistillationTask, make_demonstrations, teacher=teacher)


CASES = {
    **{name: rollouts(settings) for name, settings in ROLLOUTS.items()},
    **{f"preference_{name}": preferences(name) for name in PREFERENCE_ALGORITHMS},
    **{
        f"reward_{name}": supervised(RewardModelConfig, RewardModelTask, JUDGED[objective.examples], objective=name)
        for name, objective in REWARD_OBJECTIVES.items()
    },
    "demonstrations": supervised(SupervisedConfig, DemonstrationTask, make_demonstrations),
    **{f"teacher_{name}": distillation(name) for name in DIVERGENCES},
}


def weights(rank: LearnerRank | SupervisedRank) -> dict[str, torch.Tensor]:
    if isinstance(rank, LearnerRank):
        return weights_of(rank)
    return {name: weight.clone() for name, weight in rank._network.full_parameters()}


def outcome(name: str, model: Path, split: dict[str, Any] | None = None, **place: int) -> dict[str, Any]:
    """A case's weights before and after, and what each step reports."""
    rank = CASES[name].start(model, split or {}, place)
    start = weights(rank)
    metrics = [rank.step(step).metrics for step in CASES[name].steps]
    end = weights(rank)
    rank.close()
    return {"start": start, "end": end, "metrics": metrics}
