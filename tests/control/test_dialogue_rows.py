"""Dialogues in files: as completions with their turns, and as conversations of which the policy's part is learnt."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout_workers.demonstrations import load_demonstrations, stretches
from rollout_workers.prompts import DataConfig
from services.contracts.records import Message, Reward, RolloutGroup
from services.control.json_rows import write_rows
from services.control.report import write_report
from services.control.run_record import read_run
from services.control.sample_config import SampleRunConfig
from services.control.sampling import SampledGroup, write_completions
from services.control.selection import SelectConfig, select
from services.control.step_label_job import StepLabelsRunConfig
from tests.control.test_report import make_run, plain_metrics
from tests.fakes import make_prompt, make_rollout
from tests.tiny import tiny_tokenizer

TURNS = (
    Message(role="assistant", content="two"),
    Message(role="tool", content="more"),
    Message(role="assistant", content="four"),
)


def dialogue() -> SampledGroup:
    prompt = replace(make_prompt(0), messages=(Message(role="user", content="two and two?"),), text="user: ")
    rollout = replace(make_rollout(prompt, completion="twomorefour"), turns=TURNS)
    return SampledGroup(group=RolloutGroup(prompt=prompt, rollouts=(rollout,)), outcomes=[Reward(value=1.0)])


def test_completions_are_written_with_their_turns(tmp_path: Path) -> None:
    row = json.loads(write_completions([dialogue()], tmp_path).read_text())
    assert [turn["content"] for turn in row["turns"][0]] == ["two", "more", "four"]


def test_of_a_selected_dialogue_supervised_training_learns_the_policys_turns_alone(tmp_path: Path) -> None:
    selection = select([dialogue()], SelectConfig(threshold=1.0), max_failed_prompts=0)
    path = tmp_path / "demonstrations.jsonl"
    write_rows(path, [one.to_row() for one in selection.kept])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}-{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}.{% endfor %}"
    )
    (demonstration,) = load_demonstrations(
        DataConfig(prompts=str(path), messages_field="messages"), tokenizer, max_length=99
    )
    learnt = [tokenizer.decode(token_ids) for is_learnt, token_ids in stretches(demonstration) if is_learnt]
    assert learnt == ["two", "four"]


def sections(**rollout: Any) -> dict[str, Any]:
    return {
        "model": {"path": "m"},
        "data": {"prompts": "p.jsonl", "template": "plain"},
        "reward": {"services": [{"name": "exact_match"}]},
        "rollout": {"environment": {"name": "calculator"}} | rollout,
    }


def test_what_would_teach_the_environments_words_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"rollout\.environment's words among them"):
        SampleRunConfig.model_validate(sections() | {"select": {"threshold": 1.0}})
    assert SampleRunConfig.model_validate(sections()).select is None


def test_steps_of_a_dialogue_are_not_labelled() -> None:
    with pytest.raises(ValidationError, match=r"continues completions from the middle"):
        StepLabelsRunConfig.model_validate(sections())


def test_a_dialogue_is_shown_turn_by_turn_and_read_back_as_it_was(tmp_path: Path) -> None:
    turns = (
        Message(role="assistant", content="is it <3>?"),
        Message(role="tool", content="more"),
        Message(role="assistant", content="4"),
    )
    run = make_run(tmp_path, completion="is it <3>?more4", turns=turns, num_steps=1, metrics=plain_metrics)
    text = write_report(run).read_text()
    shown = re.findall(r'<pre class="(completion|prompt)" dir="auto">(.*?)</pre>', text, re.DOTALL)
    assert shown[1:] == [("completion", "is it &lt;3&gt;?"), ("prompt", "more"), ("completion", "4")]
    assert tuple(read_run(run).samples[0].turns) == turns
