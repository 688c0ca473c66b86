"""Settings that do not fit together are refused with a fix; the schedule of the learning rate."""

import math
import pickle
from typing import Literal, get_args, get_origin

import pytest

from ppo_learner.aggregation import AGGREGATIONS
from ppo_learner.algorithms import ALGORITHMS
from ppo_learner.config import LearnerConfig
from ppo_learner.importance import IMPORTANCE_CORRECTIONS
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.proximal import PROXIMAL_POLICIES
from ppo_learner.schedule import learning_rate_factor


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algorithm": "grop"}, "'grop' does not exist; choose one of ppo, grpo, grpo_process, rloo"),
        ({"algorithm": "grpo_process", "step_weight": 0}, "leaves nothing of grpo_process; use algorithm grpo"),
        ({"total_weight": 0}, "both 0, which leaves nothing to learn from"),
        ({"total_includes_steps": True}, "has no effect with step_weight 0"),
        (
            {"algorithm": "grpo_process", "overlong_tokens": 2, "overlong_limit": 4},
            "overlong_tokens 2 has no effect with total_weight 0 .*grpo_process.* remove it, or raise total_weight",
        ),
        ({"algorithm": "grpo_process", "total_includes_steps": True}, "total_includes_steps True .* total_weight 0"),
        (
            {"algorithm": "grpo", "total_weight": 0, "step_weight": 1.0, "length_penalty": 0.1},
            "length_penalty 0.1 has no effect with total_weight 0",
        ),
        ({"step_weight": -1.0}, "greater than or equal to 0"),
        ({"algorithm": "grpo_process", "kl_coefficient": 0.1}, "kl_placement: loss with kl_estimator: k3"),
        ({"zero_stage": 4}, "less than or equal to 3"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\)"),
        ({"kl_coefficient": 0.1, "kl_placement": "loss"}, "use k2 or k3"),
        ({"kl_target": 6.0}, "start it above 0"),
        ({"kl_coefficient": 0.1, "kl_horizon": 9}, "kl_horizon 9 has no effect without kl_target"),
        ({"algorithm": "grpo", "critic_path": "x"}, "critic_path 'x' has no effect"),
        ({"critic": "value_head", "critic_path": "x"}, "critic_path 'x' has no effect"),
        ({"critic": "value_head", "critic_warmup_steps": 5}, "set it to 0"),
        ({"proximal": "sampler", "importance_correction": "icepop"}, "icepop has no effect with proximal: sampler"),
        ({"proximal": "interpolated"}, "use it with an importance_correction, for example token_tis"),
        ({"algorithm": "rloo", "proximal": "sampler"}, "anchors a ratio, and algorithm rloo has none"),
        (
            {"importance_cap": 3.0},
            "importance_cap 3.0 has no effect with importance_correction none; remove it, or use",
        ),
        ({"importance_correction": "token_tis", "importance_low": 0.1}, "importance_low 0.1 has no .* or use icepop"),
        ({"importance_correction": "icepop", "importance_high": 0.5}, "greater than 1"),
        ({"importance_correction": "tis"}, "'none', 'token_tis', 'sequence_tis', 'sequence_mis' or 'icepop'"),
        (
            {"algorithm": "rloo", "clip_ratio_low": 0.1},
            "clip_ratio_low 0.1 has no .* loss is reinforce; remove it",
        ),
        ({"sapo_temperature_negative": 2.0}, "has no effect with algorithm ppo.* an algorithm with sapo"),
        ({"dual_clip": 1.0}, "greater than 1"),
        ({"loss_length": 9}, "no effect with loss_aggregation token_mean; remove it, or use constant_length"),
        ({"kl_stop": 0.1}, "a single update; remove it, or raise num_epochs or num_minibatches"),
        ({"algorithm": "grpo", "turn_gamma": 0.9}, "advantage is group_normalised; .* with gae or monte_carlo"),
        ({"length_penalty": 0.1}, "length_penalty 0.1 has no effect with algorithm ppo, whose advantage is gae"),
        ({"algorithm": "grpo", "solved_reward": 0.5}, "without length_penalty and difficulty_weighting"),
        ({"algorithm": "grpo", "normalise_returns": True}, "grpo, which has no critic"),
        ({"algorithm": "grpo", "value_clip": None}, "value_clip None .* grpo, which has no critic; .* or use ppo"),
        ({"algorithm": "rloo", "value_huber_delta": 1.0}, "value_huber_delta 1.0 has no effect with algorithm rloo"),
        ({"algorithm": "sapo", "value_coefficient": 1.0}, "value_coefficient 1.0 has no effect with algorithm sapo"),
        ({"algorithm": "remax", "critic": "value_head"}, "critic 'value_head' has no effect with algorithm remax"),
        ({"algorithm": "dapo", "critic_warmup_steps": 5}, "critic_warmup_steps 5 has no effect with algorithm dapo"),
        ({"algorithm": "grpo", "gamma": 0.9}, "gamma 0.9 .* group_normalised; .* gae or monte_carlo or greedy_base"),
        ({"algorithm": "reinforce", "gae_lambda": 1.0}, "gae_lambda 1.0 .* is monte_carlo; .* an algorithm with gae "),
        ({"algorithm": "rloo", "normalise_group_std": False}, "normalise_group_std False has no .* leave_one_out"),
        ({"algorithm": "remax", "step_weight": 1.0}, "its steps with nothing; set step_weight to 0"),
        ({"learning_rate": 1e-6}, "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_refused_with_its_fix(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LearnerConfig.model_validate(settings)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_file_with_a_learning_rate_of_the_critic_serves_every_algorithm(name: str) -> None:
    assert LearnerConfig(algorithm=name, critic_lr=1e-3).critic_lr == 1e-3


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_brings_its_settings_where_they_differ_from_the_defaults(name: str) -> None:
    config = LearnerConfig(algorithm=name)
    for setting, value in ALGORITHMS[name].settings.items():
        assert getattr(config, setting) == value != LearnerConfig.model_fields[setting].default


def test_a_user_s_own_key_comes_before_the_algorithm_s() -> None:
    assert LearnerConfig().whiten_advantages and not LearnerConfig(whiten_advantages=False).whiten_advantages
    config = LearnerConfig(algorithm="grpo_process", total_weight=0.5)
    assert (config.total_weight, config.step_weight) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("proximal", PROXIMAL_POLICIES),
        ("importance_correction", IMPORTANCE_CORRECTIONS),
        ("loss_aggregation", AGGREGATIONS),
    ],
)
def test_a_setting_offers_what_its_dict_has(setting: str, names: dict[str, object]) -> None:
    annotation = LearnerConfig.model_fields[setting].annotation
    offered = next((part for part in get_args(annotation) if get_origin(part) is Literal), annotation)
    assert list(get_args(offered)) == list(names)


@pytest.mark.parametrize(
    "settings",
    [
        {"importance_correction": "sequence_tis", "importance_cap": 4.0},
        {"whiten_advantages": False},
        {"algorithm": "grpo_process", "total_weight": 0.5, "overlong_tokens": 2, "overlong_limit": 4},
    ],
)
def test_a_config_that_was_written_out_in_full_is_read_back(settings: dict[str, object]) -> None:
    config = LearnerConfig.model_validate(settings)
    assert LearnerConfig.model_validate(config.model_dump()) == config
    assert LearnerConfig.model_validate_json(config.model_dump_json()) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.model_copy(update={"lr": config.lr}) == config


def test_every_setting_has_a_help_text() -> None:
    missing = [name for name, field in LearnerConfig.model_fields.items() if not field.description]
    assert not missing


def test_no_help_text_tells_what_holds_only_today() -> None:
    dated = [name for name, field in LearnerConfig.model_fields.items() if "today" in (field.description or "")]
    assert not dated


def test_the_rate_rises_linearly_and_then_stays() -> None:
    config = OptimizerConfig(warmup_steps=4)
    rates = [learning_rate_factor(config, step=step, total_steps=10) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_and_cosine_end_at_zero() -> None:
    linear, cosine = OptimizerConfig(lr_schedule="linear"), OptimizerConfig(lr_schedule="cosine")
    assert [learning_rate_factor(linear, step=step, total_steps=4) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert learning_rate_factor(cosine, step=1, total_steps=4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate_factor(cosine, step=4, total_steps=4) == pytest.approx(0)


@pytest.mark.parametrize(
    ("settings", "max_staleness", "proximal"),
    [
        ({}, 0, "recomputed"),
        ({}, 1, "sampler"),
        ({"proximal": "recomputed"}, 1, "recomputed"),
        ({"importance_correction": "token_tis"}, 1, "recomputed"),
        ({"algorithm": "rloo"}, 1, "recomputed"),
    ],
)
def test_stale_samples_are_clipped_against_the_policy_that_drew_them(
    settings: dict[str, str], max_staleness: int, proximal: str
) -> None:
    config = LearnerConfig.model_validate(settings).for_run(max_staleness=max_staleness, max_completion_tokens=8)
    assert config.proximal == proximal


def test_a_constant_length_is_the_longest_completion_allowed_unless_the_user_says_otherwise() -> None:
    def resolved(**settings: object) -> int | None:
        config = LearnerConfig.model_validate(settings)
        return config.for_run(max_staleness=0, max_completion_tokens=512).loss_length

    assert resolved(loss_aggregation="constant_length") == 512
    assert resolved(loss_aggregation="constant_length", loss_length=7) == 7
    assert resolved() is None
