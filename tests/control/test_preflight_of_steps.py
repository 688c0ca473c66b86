"""A reward that says that it scores no steps is refused where steps count, and taken where they do not."""

from pathlib import Path
from typing import Any

import pytest

from reward_server.assembly import build_scorer
from reward_server.config import RewardServerConfig
from reward_server.part_config import EnsembleConfig, RewardServiceConfig, RewardSource
from services.contracts.errors import UserError
from services.contracts.records import RewardDescription
from services.control.config import RunConfig
from services.control.preflight import refuse_reward_without_steps

STEPS = str(Path(__file__).parents[2] / "examples" / "rewards" / "digit_by_digit.py") + ":score"
RIGHT, OTHER, UNKNOWN = (RewardSource(name=name) for name in ("exact_match", "repetition", STEPS))


def learner(**settings: Any) -> Any:  # Any: the section of a run
    sections = {
        "model": {"path": "./nowhere"},
        "data": {"prompts": "nowhere.jsonl"},
        "reward": {"services": [{"name": "exact_match"}]},
        "learner": settings,
    }
    return RunConfig.model_validate(sections).learner


@pytest.mark.parametrize("settings", [{"algorithm": "grpo_process"}, {"algorithm": "grpo", "step_weight": 0.5}])
def test_a_reward_without_steps_is_refused_where_steps_count(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"algorithm {settings['algorithm']} .* and the reward plain says"):
        refuse_reward_without_steps(learner(**settings), RewardDescription(name="plain", gives_steps=False))


@pytest.mark.parametrize(
    ("algorithm", "gives_steps"), [("grpo_process", True), ("grpo_process", None), ("grpo", False)]
)
def test_what_may_give_steps_or_need_not_is_taken(algorithm: str, gives_steps: bool | None) -> None:
    refuse_reward_without_steps(learner(algorithm=algorithm), RewardDescription(name="r", gives_steps=gives_steps))


@pytest.mark.parametrize(
    ("aggregate", "members", "gives_steps"),
    [("mean", (RIGHT, OTHER), False), ("mean", (RIGHT, UNKNOWN), None), ("minimum", (RIGHT, UNKNOWN), False)],
)
async def test_a_whole_says_what_its_parts_say(
    aggregate: Any, members: tuple[RewardSource, ...], gives_steps: bool | None
) -> None:
    ensemble = RewardServiceConfig(label="both", ensemble=EnsembleConfig(members=members, aggregate=aggregate))
    for services in ([ensemble], [ensemble, RewardServiceConfig(name="repetition")]):
        assert build_scorer(services, RewardServerConfig()).description.gives_steps is gives_steps
