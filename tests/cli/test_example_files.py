"""Every YAML file in `examples/` is what the command that it is for reads; none of them is run here."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from reward_server.__main__ import read_target
from reward_server.assembly import load_reward
from services.cli.arguments import load_config
from services.control.adaptation import AdaptConfig
from services.control.config import RewardModelRunConfig, RunConfig
from services.control.constitution import load_constitution
from services.control.pipeline_config import PipelineConfig, resolve
from services.control.stage_commands import STAGE_COMMANDS

ROOT = Path(__file__).parents[2]

COMMANDS = {
    "adapt/adapt.yaml": "adapt",
    "adapt/trainer.yaml": "reward-model",
    "code.yaml": "train",
    "constitution.yaml": "a constitution",
    "dialogue/sft.yaml": "sft",
    "dialogue/train.yaml": "train",
    "forgetting/recipe.yaml": "pipeline",
    "gpu.yaml": "train",
    "gsm8k.yaml": "train",
    "gsm8k_python.yaml": "train",
    "judge.yaml": "reward serve",
    "judged.yaml": "train",
    "label_pairs.yaml": "label-pairs",
    "pipeline/r1.yaml": "pipeline",
    "preferences.yaml": "prefer",
    "quickstart/mixed.yaml": "train",
    "quickstart/ppo.yaml": "train",
    "quickstart/process.yaml": "train",
    "quickstart/sft.yaml": "sft",
    "revise.yaml": "revise",
    "reward_hacking.yaml": "train",
    "reward_model/policy_dpo.yaml": "prefer",
    "reward_model/policy_ppo.yaml": "train",
    "reward_model/policy_sft.yaml": "sft",
    "reward_model/train.yaml": "reward-model",
    "rewards/composed.yaml": "reward serve",
    "rewards/secured.yaml": "reward serve",
}
"""The command that each example is for."""


def read_as(command: str, path: str) -> object:
    """The file as its command reads it. Raises `UserError` where that would."""
    readers: dict[str, Callable[[], object]] = {
        "a constitution": lambda: load_constitution(Path(path)),
        "adapt": lambda: load_config(AdaptConfig, [path], prog="", summary=""),
        "pipeline": lambda: resolve(load_config(PipelineConfig, [path], prog="", summary="")),
        "reward serve": lambda: read_target(path, {}),
    }
    if command in readers:
        return readers[command]()
    return load_config(STAGE_COMMANDS[command].config, [path], prog="", summary="")


def test_every_example_has_a_command() -> None:
    examples = ROOT / "examples"
    found = {str(path.relative_to(examples)) for pattern in ("*.yaml", "*.yml") for path in examples.rglob(pattern)}
    assert found == set(COMMANDS)


def test_the_example_of_adapting_can_make_pairs_of_the_run_that_it_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(AdaptConfig, ["examples/adapt/adapt.yaml"], prog="", summary="")
    run = load_config(RunConfig, ["examples/reward_model/policy_ppo.yaml"], prog="", summary="")

    trainer, first = (
        load_config(RewardModelRunConfig, [path], prog="", summary="")
        for path in (str(config.run.trainer), "examples/reward_model/train.yaml")
    )

    assert (config.run.follow, config.run.initial) == (run.run.dir, first.run.dir / "export")
    assert trainer.data.max_tokens == first.data.max_tokens
    assert run.metrics.samples_per_step >= 2 * run.train.prompts_per_step
    assert run.data.reference_field is None
    (labeller,) = config.labels.services
    assert load_reward(labeller).name == "judge_pointwise" and "reference_field" not in labeller.options


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_what_its_command_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # Where a user types the commands: examples name one another from here.
    config = read_as(COMMANDS[name], f"examples/{name}")
    run = getattr(config, "run", None)
    assert run is None or str(getattr(run, "dir", "runs/")).startswith("runs/")
    text = (ROOT / "examples" / name).read_text()
    missing = [path for path in re.findall(r"examples/[\w/]+\.(?:py|yaml)", text) if not Path(path).exists()]
    assert not missing
