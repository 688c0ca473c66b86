"""Which tokens of a conversation are trained: by the template's marks, by its beginnings, and by what a row says."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout_workers.conversations import Turn, encode_conversation
from rollout_workers.demonstrations import load_demonstrations, stretches
from rollout_workers.prompts import DataConfig
from services.contracts.errors import UserError
from services.contracts.records import Message
from tests.tiny import tiny_tokenizer

PLAIN = (
    "{% for m in messages %}{{ m.role }}={{ m.content }}{{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}assistant={% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}assistant={% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %} {% else %}{{ m.role }}={{ m.content }}{{ eos_token }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant={% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ m.role }}={% if m.role == 'assistant' and not loop.last %}-{% else %}{{ m.content }}"
    "{% endif %}{{ eos_token }} {% endfor %}{% if add_generation_prompt %}assistant={% endif %}"
)
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


def load(folder: Path, turns: object, *, template: str = PLAIN, max_length: int = 200, **settings: Any) -> list[str]:
    """The stretches of text that are learnt of one row, in order."""
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    data = DataConfig(prompts=str(path), messages_field="messages", **settings)
    (demonstration,) = load_demonstrations(data, tokenizer, max_length=max_length)
    return [tokenizer.decode(token_ids) for learnt, token_ids in stretches(demonstration) if learnt]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_every_answer_is_learnt_with_its_end_and_nothing_else(tmp_path: Path, template: str) -> None:
    assert load(tmp_path, CHAT, template=template) == ["two<eos>", "four<eos>"]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
@pytest.mark.parametrize("flag", [{"train": False}, {"weight": 0}])
def test_a_turn_can_be_left_out(tmp_path: Path, template: str, flag: dict[str, object]) -> None:
    turns = [CHAT[0], CHAT[1] | flag, *CHAT[2:]]
    assert load(tmp_path, turns, template=template) == ["four<eos>"]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_other_roles_can_be_learnt_and_show_their_header(tmp_path: Path, template: str) -> None:
    assert load(tmp_path, CHAT[:2], template=template, train_roles=("user",)) == ["user=one<eos>"]
    turns = [CHAT[0] | {"train": True}, CHAT[1]]
    assert load(tmp_path, turns, template=template) == ["user=one<eos>", "two<eos>"]


def test_marks_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = MARKED
    turns = [Turn(message=Message(**turn), trained=turn["role"] == "assistant") for turn in CHAT]
    theirs = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ours = encode_conversation(tokenizer, turns, where="here")
    assert list(ours.token_ids) == theirs["input_ids"]
    assert list(ours.loss_mask) == theirs["assistant_masks"]


def test_a_system_turn_goes_before_and_is_not_learnt(tmp_path: Path) -> None:
    assert load(tmp_path, CHAT[:2], system="be kind") == ["two<eos>"]


def test_a_template_that_writes_old_turns_differently_is_refused_unless_only_the_last_is_learnt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 0, turn 1: the chat template writes .* \(character 24: 'two<eos> ', in"):
        load(tmp_path, CHAT, template=FORGETFUL)
    assert load(tmp_path, [CHAT[0], CHAT[1] | {"train": False}, *CHAT[2:]], template=FORGETFUL) == ["four<eos>"]


def test_without_an_end_of_sequence_the_turn_is_learnt_to_the_next(tmp_path: Path) -> None:
    template = PLAIN.replace("{{ eos_token }}", ".")
    assert load(tmp_path, CHAT, template=template) == ["two. ", "four. "]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("hello", "a conversation is a list"),
        ([], "a conversation is a list"),
        ([{"role": "gpt", "content": "x"}], r"turn 0: expected .* with a role among \('system', 'user'"),
        ([{"role": "user", "content": None}], "turn 0: content is a string, not None"),
        ([CHAT[0], CHAT[1] | {"tool_calls": [1]}], r"turn 1: \['tool_calls'\] would be lost"),
        ([CHAT[0], CHAT[1] | {"weight": 0.5}], r"weight 1 or 0, and they agree, not \{'weight': 0.5\}"),
        ([CHAT[0], CHAT[1] | {"weight": 1, "train": False}], "they agree"),
        ([CHAT[0]], r"no turn is trained; it has the roles \['user'\], and data.train_roles is \['assistant'\]"),
        ([CHAT[1]], "the first turn is the assistant's"),
        ([{"role": "user", "content": "\ud800"}, CHAT[1]], "lone surrogate"),
    ],
)
def test_a_conversation_that_cannot_be_learnt_is_refused(tmp_path: Path, turns: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, turns)
    assert "rows.jsonl, row 0" in str(raised.value)


def test_a_template_that_refuses_and_a_conversation_that_is_too_long_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 0: the chat template refuses the conversation: roles must alternate"):
        load(tmp_path, CHAT, template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="row 0: it has 25 tokens and the limit is 24"):
        load(tmp_path, CHAT[:2], max_length=24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_roles": ("user",)}, "has no effect without messages_field"),
        ({"messages_field": "messages", "response_field": "answer"}, "set one of them"),
        ({"messages_field": "messages", "template": "plain"}, "set template: chat"),
        ({"messages_field": "messages", "text_field": "text"}, "text_field 'text' holds whole texts"),
        ({"response_field": "answer", "text_field": "text"}, "set one of them"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(prompts="rows.jsonl", **settings)
