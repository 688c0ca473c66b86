"""Rows of preferences: what each form becomes, and what each fault says."""

import json
from pathlib import Path
from typing import Any

import pytest

from rollout_workers.preference_data import PreferenceDataConfig, PreferenceExamples, load_preferences
from services.contracts.errors import UserError
from services.contracts.preference_example import PreferenceForm
from services.contracts.records import Demonstration
from services.control.judging import preference
from tests.tiny import END_OF_SEQUENCE, tiny_tokenizer

CHAT = "{% for m in messages %}{{ m.role[0] }}.{{ m.content }} {% endfor %}{% if add_generation_prompt %}a.{% endif %}"


def load(
    folder: Path, form: PreferenceForm, *rows: Any, max_tokens: int = 100, seed: int = 0, **settings: Any
) -> PreferenceExamples:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PreferenceDataConfig.model_validate({"examples": str(path), "validation_share": 0.0} | settings)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return load_preferences(data, tokenizer, form=form, max_tokens=max_tokens, seed=seed)


def shown(sequence: Demonstration) -> str:
    """The tokens, with a bar before those that are learnt."""
    tokens = tiny_tokenizer().convert_ids_to_tokens(list(sequence.token_ids))
    first = sequence.loss_mask.index(1)
    assert all(sequence.loss_mask[first:])
    return "".join([*tokens[:first], "|", *tokens[first:]]).replace(END_OF_SEQUENCE, "!")


def pair(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def labelled(prompt: str, completion: str, label: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_a_pair_is_the_prompt_with_each_completion_and_its_end(tmp_path: Path) -> None:
    found = load(tmp_path, "pairs", pair("1+1=", "2", "11"), pair("1-1=", "0", ""))
    shapes = [[shown(one) for one in example.completions] for example in found.training]
    assert shapes == [["1+1=|2!", "1+1=|11!"], ["1-1=|0!", "1-1=|!"]]
    assert [(example.row, example.desirable, example.unrelated) for example in found.training] == [
        (0, None, None),
        (1, None, None),
    ]


def test_pairs_of_messages_and_whole_transcripts_become_chats(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "b"},
    ]
    row = pair(turns, [turn("assistant", "ok")], [turn("assistant", "no")])
    (found,) = load(tmp_path, "pairs", row, template="chat", system="be").training
    assert [shown(one) for one in found.completions] == ["s.be u.hi a.yo u.b a.|ok!", "s.be u.hi a.yo u.b a.|no!"]
    context = "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: b\n\nAssistant: "
    whole = {"chosen": f"{context}ok", "rejected": f"{context}no"}
    (again,) = load(tmp_path, "pairs", whole, template="chat", system="be", prompt_field=None).training
    assert again.completions == found.completions


def test_what_a_judge_wrote_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [preference("1+1=", "2", "3", 1.5, "judge"), preference("2+2=", "4", "5", 0.5, "judge")]
    found = load(tmp_path, "pairs", *rows)
    assert [shown(one) for one in found.training[1].completions] == ["2+2=|4!", "2+2=|5!"]


def test_a_label_comes_with_the_completion_of_the_next_row_that_has_another_prompt(tmp_path: Path) -> None:
    rows = [labelled("1+1=", "2", True), labelled("1+1=", "3", False), labelled("2+2=", "4", True)]
    found = load(tmp_path, "labels", *rows).training
    assert [example.desirable for example in found] == [True, False, True]
    assert [shown(example.completions[0]) for example in found] == ["1+1=|2!", "1+1=|3!", "2+2=|4!"]
    assert [shown(example.unrelated) for example in found if example.unrelated] == ["1+1=|4!", "1+1=|4!", "2+2=|2!"]


def test_an_unrelated_completion_fits_the_model_and_may_be_of_the_same_prompt_where_there_is_no_other(
    tmp_path: Path,
) -> None:
    rows = [labelled("aaaa", "b", True), labelled("c", "ddddd", False), labelled("aaaa", "e", False)]
    found = load(tmp_path, "labels", *rows, max_tokens=7).training
    assert shown(found[0].unrelated or found[0].completions[0]) == "aaaa|e!"


def test_prompts_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    rows = [pair(f"{n % 20}+", str(n), "no") for n in range(60)]
    found = load(tmp_path, "pairs", *rows, validation_share=0.3)
    sides = [
        {shown(example.completions[0]).split("|")[0] for example in side} for side in (found.training, found.validation)
    ]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert len(found.training) + len(found.validation) == 60


TRANSCRIPTS = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}


@pytest.mark.parametrize(
    ("form", "rows", "settings", "message"),
    [
        ("pairs", [{"prompt": "a", "chosen": "b"}], {}, r"row 0: no column 'rejected'; the row has \['chosen'"),
        ("pairs", [pair("a", "b", "c"), pair("a", "b", "b")], {}, "row 1: chosen and rejected are the same"),
        ("pairs", [pair("a", "b", 3)], {}, "row 0, column 'rejected': expected a string, found int"),
        (
            "pairs",
            [pair([turn("user", "a")], "b", "c")],
            {},
            "a list of turns needs data.template: chat",
        ),
        ("pairs", [pair("", "b", "c")], {}, "row 0: the prompt is empty"),
        (
            "pairs",
            [pair("a" * 9, "b" * 9, "c")],
            {},
            "prompt and completion have 19 tokens and 16 fit; raise",
        ),
        ("pairs", [TRANSCRIPTS], {"prompt_field": None}, "chosen and rejected follow different prompts"),
        ("pairs", [pair("a", "b", "b")], {"unfit_rows": "drop"}, r"of 1 rows 0 are left .* \(left out: 1 same\)"),
        ("pairs", [pair("a", "b", "c")], {"validation_share": 0.5}, "1 rows .* 0 for validation|0 are left to learn"),
        ("labels", [labelled("a", "b", 1)], {}, r"column 'label': .* desirable \(true\) or not \(false\), .* is 1"),
        ("labels", [labelled("a", "b", "yes")], {}, "the label is 'yes'"),
        ("labels", [labelled("a", "b", True)] * 2, {}, "all 2 rows to learn are desirable; kto learns from both"),
        ("labels", [labelled("a", "b", False)], {}, "all 1 rows to learn are undesirable"),
    ],
)
def test_what_is_wrong_is_told_by_row_and_column(
    form: PreferenceForm, rows: list[Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, form, *rows, max_tokens=16 if "prompt_field" not in settings else 100, **settings)


def test_unfit_rows_are_left_out_and_counted_where_it_is_asked_for(tmp_path: Path) -> None:
    rows = [pair("a", "b", "c"), pair("a", "b", "b"), pair("a", "b" * 20, "c"), pair("a", "c" * 20, "b")]
    found = load(tmp_path, "pairs", *rows, unfit_rows="drop", max_tokens=16)
    assert [example.row for example in found.training] == [0]
    assert found.left_out == {"same": 1, "too_long": 2}
