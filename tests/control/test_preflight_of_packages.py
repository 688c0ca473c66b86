"""Settings that need a package which is not installed are refused before anything starts."""

from typing import Any

import pytest

from ppo_learner.config import LearnerConfig
from ppo_learner.lora_config import LoraConfig
from ppo_learner.optimizer_config import OptimizerConfig
from services.contracts.errors import UserError
from services.control.preflight import check_packages


class OddConfig(OptimizerConfig):
    """Settings that need a package which nobody has."""

    @property
    def packages(self) -> dict[str, str]:
        return {"no_such_package": "learner.optimizer"}


def test_a_package_that_is_missing_is_named_with_the_setting_that_needs_it() -> None:
    with pytest.raises(UserError, match=r"learner\.optimizer needs the package no_such_package, .* pip install"):
        check_packages(OddConfig())


@pytest.mark.parametrize(
    ("settings", "packages"),
    [
        ({}, {}),
        ({"optimizer": "muon", "lora": LoraConfig()}, {}),
        ({"optimizer": "adamw_8bit"}, {"bitsandbytes": "learner.optimizer"}),
        ({"lora": LoraConfig(quantise="4bit")}, {"bitsandbytes": "learner.lora.quantise"}),
    ],
)
def test_each_setting_says_what_it_needs(settings: dict[str, Any], packages: dict[str, str]) -> None:
    learner = LearnerConfig(**settings)
    assert learner.packages == packages
    check_packages(learner)
