"""Stages of a recipe: what they are given, which are skipped or go on, and what is refused before anything starts."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from services.cli.__main__ import COMMANDS
from services.contracts.errors import UserError
from services.control.pipeline import (
    Planned,
    StageEnded,
    choose,
    look_ahead,
    plan,
    run_stages,
    summarise,
)
from services.control.pipeline_config import PipelineConfig, Stage, resolve
from services.control.run_folder import CHECKPOINTS, EXPORT
from services.control.stage_commands import STAGE_COMMANDS
from services.control.stage_process import Ended


class FakeCommands:
    """Remembers what it was asked to run; ends as the test says, and leaves what a command would leave.

    Args:
        drained: the stage whose command ends well before its last step.
        codes: exit code of a command, by the name of its stage; 0 for all others.
    """

    def __init__(self, drained: str = "", **codes: int) -> None:
        self.ran: list[str] = []
        self._drained = drained
        self._codes = codes

    def __call__(self, arguments: Sequence[str]) -> Ended:
        command, file, *switches = arguments
        config = yaml.safe_load(Path(file).read_text())
        folder = Path(config["run"]["dir"])
        self.ran.append(" ".join((command, folder.name, *switches)))
        code = self._codes.get(folder.name, 0)
        if command in ("sft", "train"):
            (folder / CHECKPOINTS).mkdir(exist_ok=True)
            if code == 0 and folder.name != self._drained:
                (folder / EXPORT).mkdir(exist_ok=True)
        if code == 0 and command == "train":
            (folder / "summary.json").write_text(json.dumps({"num_steps": 3, "accuracy_after": 0.5, "seconds": 1}))
        if code == 0 and command == "evaluate":
            (folder / "evaluation.json").write_text(json.dumps({"accuracy": 0.25}))
        return Ended(code=code, interrupted=code == 130)


def rl(task: Path, model: str, **sections: Any) -> dict[str, Any]:
    return {
        "model": {"path": model, "dtype": "float32"},
        "data": {"prompts": str(task / "rows.jsonl"), "prompt_field": "question", "template": "plain"},
        "rollout": {"max_completion_tokens": 8},
        "reward": {"services": [{"name": "exact_match"}]},
        **sections,
    }


def recipe(task: Path, folder: Path) -> dict[str, Any]:
    """Supervised training, reinforcement learning on it, the best of that, and learning these; and an evaluation."""
    data = {"prompt_field": "question", "response_field": "answer", "template": "plain"}
    best = {"prompts": "${collect}/demonstrations.jsonl", "response_field": "response", "template": "plain"}
    stages = [
        {
            "name": "warmup",
            "command": "sft",
            "config": {
                "model": {"path": str(task / "model"), "dtype": "float32"},
                "data": {"prompts": str(task / "rows.jsonl"), **data},
            },
        },
        {"name": "reason", "command": "train", "config": rl(task, "${warmup}/export")},
        {
            "name": "collect",
            "command": "sample",
            "config": rl(task, "${reason}/export", select={"threshold": 1.0}),
        },
        {"name": "again", "command": "sft", "config": {"model": {"path": "${reason}/export"}, "data": best}},
        {
            "name": "judge",
            "command": "evaluate",
            "config": rl(task, "${again}/export", evaluate={"prompts": str(task / "rows.jsonl")}),
        },
    ]
    return {"run": {"name": "r1", "dir": str(folder / "runs"), "seed": 5}, "stages": stages}


@pytest.fixture
def values(task: Path, tmp_path: Path) -> dict[str, Any]:
    return recipe(task, tmp_path)


def stages_of(values: dict[str, Any]) -> list[Stage]:
    return resolve(PipelineConfig(**values))


def start(values: dict[str, Any], commands: FakeCommands, **ends: str | None) -> StageEnded | None:
    stages = stages_of(values)
    chosen = choose(stages, **({"first": None, "last": None} | ends))
    return run_stages(plan(stages, chosen), run=commands, tell=lambda what: None)


def test_references_seeds_and_folders_are_filled_in(values: dict[str, Any]) -> None:
    folder = Path(values["run"]["dir"])
    warmup, reason, collect, again, _ = stages_of(values)
    reasoning: Any = reason.config
    assert (reasoning.run.dir, reasoning.run.seed, reasoning.run.name) == (folder / "reason", 5, "r1: reason")
    assert reasoning.model.path == str(folder / "warmup" / "export")
    assert warmup.inputs == ()
    assert collect.inputs == ("reason",)
    assert again.inputs == ("reason", "collect")
    learning: Any = again.config
    assert learning.data.prompts == str(folder / "collect" / "demonstrations.jsonl")


def test_a_file_is_the_base_and_the_recipe_lies_on_it(values: dict[str, Any], task: Path, tmp_path: Path) -> None:
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(rl(task, "elsewhere", run={"dir": "own", "seed": 9})))
    values["stages"][1] |= {"file": str(tmp_path / "rl.yaml"), "config": {"model": {"path": "${warmup}/export"}}}
    config: Any = stages_of(values)[1].config
    assert config.model.path.endswith("warmup/export")
    assert config.model.dtype == "float32"
    assert (config.run.dir, config.run.seed) == (Path(values["run"]["dir"]) / "reason", 9)


def test_a_stage_is_a_command_of_the_command_line() -> None:
    assert STAGE_COMMANDS.keys() <= COMMANDS.keys()


def test_a_judging_job_has_its_folder_and_seed_from_the_pipeline_too(values: dict[str, Any]) -> None:
    config = {
        "candidates": {"rows": "${collect}/completions.jsonl", "completions_field": "completions"},
        "judge": {"base_url": "http://127.0.0.1:1/v1", "model": "judge"},
        "comparison": {"measure": "The better answer is right."},
    }
    values["stages"].append({"name": "label", "command": "label-pairs", "config": config})
    label: Any = stages_of(values)[-1].config
    assert (label.run.dir, label.run.seed) == (Path(values["run"]["dir"]) / "label", 5)
    assert label.candidates.rows.endswith("collect/completions.jsonl")


def test_every_stage_runs_once_in_order_and_is_skipped_from_then_on(values: dict[str, Any]) -> None:
    first, second = FakeCommands(), FakeCommands()
    assert start(values, first) is None
    assert first.ran == ["sft warmup", "train reason", "sample collect", "sft again", "evaluate judge"]
    assert start(values | {"run": values["run"] | {"name": "another title"}}, second) is None
    assert second.ran == []
    rows = summarise(stages_of(values))
    assert [row["name"] for row in rows] == ["warmup", "reason", "collect", "again", "judge"]
    assert (rows[1]["num_steps"], rows[1]["accuracy_after"]) == (3, 0.5)
    assert rows[4]["accuracy_after"] == 0.25


def test_an_interrupted_stage_is_resumed_and_one_that_cannot_is_begun_again(values: dict[str, Any]) -> None:
    first, second, third = FakeCommands(reason=130), FakeCommands(collect=1), FakeCommands()
    stopped = start(values, first)
    assert stopped is not None
    assert (stopped.stage.name, stopped.ended.code) == ("reason", 130)
    assert first.ran == ["sft warmup", "train reason"]
    start(values, second)
    assert second.ran == ["train reason --resume", "sample collect"]
    start(values, third)
    assert third.ran == ["sample collect", "sft again", "evaluate judge"]


def test_an_interrupt_after_which_the_stage_ended_well_stops_before_the_next(values: dict[str, Any]) -> None:
    stages, commands = stages_of(values), FakeCommands()

    def run(arguments: Sequence[str]) -> Ended:
        return replace(commands(arguments), interrupted=True)

    stopped = run_stages(plan(stages, stages), run=run, tell=lambda what: None)
    assert stopped is not None
    assert (stopped.stage.name, stopped.is_done) == ("warmup", True)
    assert plan(stages, stages)[0].state == "finished"


def test_a_drained_stage_is_not_finished_and_is_resumed(values: dict[str, Any]) -> None:
    first, second = FakeCommands(drained="reason"), FakeCommands()
    stopped = start(values, first)
    assert stopped is not None
    assert (stopped.stage.name, stopped.ended.code, stopped.is_done) == ("reason", 0, False)
    assert first.ran == ["sft warmup", "train reason"]
    assert start(values, second) is None
    assert second.ran[:2] == ["train reason --resume", "sample collect"]


def test_a_stage_does_not_go_on_from_what_was_made_anew(values: dict[str, Any]) -> None:
    start(values, FakeCommands(reason=130))
    shutil.rmtree(Path(values["run"]["dir"]) / "warmup")
    commands = FakeCommands()
    for _ in range(2):  # Before the warm-up is made anew, and after.
        with pytest.raises(UserError, match=r"reason is not finished, and was begun from a run of warmup .* delete "):
            start(values, commands)
        start(values, commands, last="warmup")
    assert commands.ran == ["sft warmup"]
    shutil.rmtree(Path(values["run"]["dir"]) / "reason")
    assert start(values, commands) is None
    assert commands.ran[1] == "train reason"


def test_labels_of_a_model_that_was_made_anew_since_are_not_gone_on_with(values: dict[str, Any], task: Path) -> None:
    values["stages"][1:] = [{"name": "label", "command": "label-steps", "config": rl(task, "${warmup}/export")}]
    start(values, FakeCommands(label=130))
    commands = FakeCommands()
    shutil.rmtree(Path(values["run"]["dir"]) / "warmup")
    start(values, commands, last="warmup")
    with pytest.raises(UserError, match="label is not finished, and was begun from a run of warmup that is no longer"):
        start(values, commands)
    shutil.rmtree(Path(values["run"]["dir"]) / "label")
    assert start(values, commands) is None
    assert commands.ran == ["sft warmup", "label-steps label"]


def test_a_changed_setting_of_a_finished_stage_is_refused_and_may_be_started_after(values: dict[str, Any]) -> None:
    start(values, FakeCommands(), last="reason")
    values["stages"][0]["config"]["learner"] = {"lr": 0.5}
    with pytest.raises(UserError, match=r"stage warmup is finished, with learner.lr 'at its default', .* 0.5 now"):
        start(values, FakeCommands())
    commands = FakeCommands()
    start(values, commands, first="collect")
    assert commands.ran == ["sample collect", "sft again", "evaluate judge"]


def test_a_stage_that_is_not_finished_may_be_changed(values: dict[str, Any]) -> None:
    start(values, FakeCommands(reason=1))
    values["stages"][1]["config"]["learner"] = {"lr": 0.5}
    commands = FakeCommands()
    assert start(values, commands) is None
    assert commands.ran[0] == "train reason --resume"


def test_a_stage_made_from_a_run_that_is_gone_is_refused(values: dict[str, Any]) -> None:
    start(values, FakeCommands())
    (Path(values["run"]["dir"]) / "reason" / "stage.json").unlink()
    with pytest.raises(UserError, match="stage collect is finished, and was made from a run of reason"):
        start(values, FakeCommands())
    start(values, FakeCommands(), first="reason", last="reason")
    with pytest.raises(UserError, match=r"stage collect is finished, .* delete .*collect and the folders of"):
        start(values, FakeCommands())


def test_a_part_can_be_run_if_what_it_reads_is_there(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="stage collect reads what reason makes, and that is not finished"):
        start(values, FakeCommands(), first="collect")
    commands = FakeCommands()
    start(values, commands, last="reason")
    start(values, commands, first="collect", last="collect")
    assert commands.ran == ["sft warmup", "train reason", "sample collect"]
    with pytest.raises(UserError, match="--from: there is no stage 'resaon'; there are warmup, reason"):
        start(values, commands, first="resaon")
    with pytest.raises(UserError, match="--from again comes after --until reason"):
        start(values, commands, first="again", last="reason")


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (1, {"command": "trian"}, "command 'trian' is none of a pipeline's; choose one of sft, prefer, train"),
        (1, {"name": "warmup"}, "two stages are called 'warmup'"),
        (1, {"name": "../up"}, "name"),
        (1, {"config": {"modle": {}}}, "stage reason: key modle is not a setting; did you mean model"),
        (1, {"config": {"run": {"dir": "mine"}}}, "stage reason: run.dir is set to 'mine', and a pipeline gives"),
        (1, {"config": {"model": {"path": "${again}/export"}}}, r"\$\{again\} is no stage before this one"),
        (1, {"config": {"model": {"path": "${warmup}/exprot"}}}, r"\$\{warmup\}/exprot is nothing that `trireme sft`"),
        (1, {"config": {"model": {"path": "x"}, "learner": {"lr": -1}}}, "stage reason:\n  data"),
        (1, {"file": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
    ],
)
def test_a_wrong_recipe_is_refused(values: dict[str, Any], stage: int, change: dict[str, Any], message: str) -> None:
    values["stages"][stage] |= change
    with pytest.raises((UserError, ValidationError), match=message):
        stages_of(values)


def look(values: dict[str, Any], planned: Sequence[Planned] | None = None) -> list[str]:
    stages = stages_of(values)
    told: list[str] = []
    look_ahead(planned or plan(stages, stages), stages, tell=told.append)
    return told


def test_looking_ahead_checks_all_that_can_be_known(values: dict[str, Any]) -> None:
    path = Path(values["run"]["dir"]) / "collect" / "demonstrations.jsonl"
    assert look(values) == [
        "warmup: to be run, settings, model and data checked",
        "reason: to be run, settings, model and data checked",
        "collect: to be run, settings, model and data checked",
        f"again: to be run, settings checked; its data is known once {path} is there",
        "judge: to be run, settings, model and data checked",
    ]
    assert not path.parent.exists()
    start(values, FakeCommands(reason=130))  # Whose supervised training leaves no export.
    with pytest.raises(UserError, match=r"stage reason: model.path .*warmup/export' is no folder"):
        look(values)


def test_a_reward_that_a_later_stage_would_not_find_is_refused_before_the_first(values: dict[str, Any]) -> None:
    values["stages"][1]["config"]["reward"] = {"services": [{"name": "exact_mtach"}]}
    with pytest.raises(UserError, match=r"stage reason: reward.services: .*there is no reward 'exact_mtach'"):
        look(values)


def test_a_fault_of_a_late_stage_is_found_before_the_first(values: dict[str, Any]) -> None:
    values["stages"][4]["config"]["rollout"] = {"max_completion_tokens": 512}
    with pytest.raises(UserError, match=r"stage judge: rollout.max_completion_tokens is 512 and .*model takes"):
        look(values)
