"""Rows of judged completions: what each form becomes, and what each fault says."""

import json
from pathlib import Path
from typing import Any

import pytest

from rollout_workers.reward_data import RewardExamples, load_reward_examples
from rollout_workers.reward_rows import RewardDataConfig
from services.contracts.errors import UserError
from services.contracts.reward_example import ExampleForm
from tests.tiny import tiny_tokenizer

CHAT = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def load(
    folder: Path,
    form: ExampleForm,
    *rows: Any,
    any_label: bool = False,
    max_tokens: int = 100,
    seed: int = 0,
    **settings: Any,
) -> RewardExamples:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = RewardDataConfig.model_validate({"examples": str(folder / "rows.jsonl"), "validation_share": 0.0} | settings)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return load_reward_examples(data, tokenizer, form=form, any_label=any_label, max_tokens=max_tokens, seed=seed)


def shown(examples: RewardExamples) -> list[list[str]]:
    tokenizer = tiny_tokenizer()
    return [
        ["".join(tokenizer.convert_ids_to_tokens(list(ids))).replace("<pad>", ":") for ids in example.sequences]
        for example in examples.training
    ]


def test_a_pair_is_the_prompt_with_each_completion_and_a_margin(tmp_path: Path) -> None:
    rows = {"q": "1+1=", "good": "2", "bad": "11", "by": 0.5}, {"q": "1-1=", "good": "0.0", "bad": "", "by": 1}
    fields = {"prompt_field": "q", "chosen_field": "good", "rejected_field": "bad"}
    found = load(tmp_path, "pairs", *rows, **fields, margin_field="by")
    assert shown(found) == [["1+1=2", "1+1=11"], ["1-1=0.0", "1-1="]]
    assert [example.targets for example in found.training] == [(0.5, 0.0), (1.0, 0.0)]
    assert [example.completion_lengths for example in found.training] == [(1, 2), (3, 0)]
    assert load(tmp_path, "pairs", *rows, **fields).training[0].targets == (0.0, 0.0)


def test_a_transcript_is_kept_as_it_is_or_made_into_a_chat(tmp_path: Path) -> None:
    context = "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: bye"
    row = {"chosen": f"{context}\n\nAssistant: ok.", "rejected": f"{context}\n\nAssistant: no"}
    plain = load(tmp_path, "pairs", row, prompt_field=None)
    assert shown(plain)[0][0] == "::uman: hi::ssistant: yo::uman: bye::ssistant: ok."
    assert plain.training[0].completion_lengths == (4, 3)
    chat = load(tmp_path, "pairs", row, prompt_field=None, template="chat", system="be")
    assert shown(chat) == [["s:be u:hi a:yo u:bye a:ok.", "s:be u:hi a:yo u:bye a:no"]]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    as_turns = load(
        tmp_path, "pairs", {"chosen": turns, "rejected": [turns[0], turns[1] | {"content": "no"}]},
        prompt_field=None, template="chat",
    )  # fmt: skip
    assert shown(as_turns) == [["u:hi a:yo", "u:hi a:no"]]


def test_a_chat_prompt_takes_completions_as_text_or_as_the_one_turn(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "yo"}],
        "rejected": "no",
    }
    assert shown(load(tmp_path, "pairs", row, template="chat")) == [["u:hi a:yo", "u:hi a:no"]]


def test_a_list_keeps_its_order(tmp_path: Path) -> None:
    found = load(tmp_path, "lists", {"prompt": "1+1=", "completions": ["2", "3", "99"]})
    assert shown(found) == [["1+1=2", "1+1=3", "1+1=99"]]
    assert found.training[0].targets == (0.0, 0.0, 0.0)


def test_an_outcome_has_its_label(tmp_path: Path) -> None:
    rows = {"prompt": "1+1=", "completion": "2", "label": True}, {"prompt": "1+1=", "completion": "3", "label": 0.25}
    assert [example.targets for example in load(tmp_path, "outcomes", *rows).training] == [(1.0,), (0.25,)]
    rating = {"prompt": "1+1=", "completion": "2", "label": -7}
    assert load(tmp_path, "outcomes", rating, any_label=True).training[0].targets == (-7.0,)


def test_steps_are_scored_at_their_last_tokens_however_they_are_written(tmp_path: Path) -> None:
    spans = {
        "prompt": "1+1=",
        "completion": "2 so 2",
        "steps": [{"start": 0, "end": 2, "label": 0.75}, {"start": 2, "end": 6, "label": 0}],
    }
    texts = {"prompt": "1+1=", "steps": [{"text": "2", "label": 0.75}, {"text": "so 2", "label": 0}]}
    (by_span,) = load(tmp_path, "steps", spans, step_separator=" ").training
    (by_text,) = load(tmp_path, "steps", texts, step_separator=" ").training
    assert by_span == by_text
    assert list(by_span.positions) == [5, 9]
    assert by_span.targets == (0.75, 0.0)
    (cut,) = load(tmp_path, "steps", spans, step_separator=" ", max_tokens=3).training
    assert (list(cut.positions), cut.targets) == ([2], (0.0,))


def test_long_texts_are_cut_dropped_or_refused(tmp_path: Path) -> None:
    rows = {"prompt": "1+1=", "chosen": "2", "rejected": "99999"}, {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    cut = load(tmp_path, "pairs", *rows, max_tokens=6)
    assert shown(cut) == [["1+1=2", "=99999"], ["1+1=2", "1+1=3"]]
    assert cut.num_truncated == 1
    dropped = load(tmp_path, "pairs", *rows, max_tokens=6, long_texts="drop")
    assert [example.row for example in dropped.training] == [1]
    assert dropped.num_too_long == 1
    with pytest.raises(UserError, match=r"row 0: the text has 9 tokens and 6 fit; raise data\.max_tokens"):
        load(tmp_path, "pairs", *rows, max_tokens=6, long_texts="error")


def test_rows_that_teach_nothing_are_counted(tmp_path: Path) -> None:
    same = {"prompt": "1+1=", "chosen": "2", "rejected": "2"}
    found = load(tmp_path, "pairs", same, same | {"rejected": "3"})
    assert [example.row for example in found.training] == [1]
    assert found.num_empty == 1


def test_the_split_depends_on_seed_and_prompt_and_keeps_a_prompt_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n % 50}=", "chosen": f"{n}", "rejected": "x"} for n in range(200)]
    found = load(tmp_path, "pairs", *rows, validation_share=0.3)
    sides = [{example.row for example in side} for side in (found.training, found.validation)]
    assert sides[0] | sides[1] == set(range(200))
    assert not {row % 50 for row in sides[0]} & {row % 50 for row in sides[1]}
    assert 0.15 < len(sides[1]) / 200 < 0.45
    again = load(tmp_path, "pairs", *rows[:100], validation_share=0.3)
    assert {example.row for example in again.validation} == {row for row in sides[1] if row < 100}
    assert load(tmp_path, "pairs", *rows, validation_share=0.3, seed=1) != found


PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
STEPS = {"prompt": "1+1=", "completion": "2 so 2", "steps": [{"start": 0, "end": 2, "label": 1}]}


@pytest.mark.parametrize(
    ("form", "row", "settings", "message"),
    [
        ("pairs", {"prompt": "a", "chosen": "b"}, {}, r"row 0: no column 'rejected'; the row has \['chosen', 'prompt'"),
        ("pairs", PAIR | {"chosen": 2}, {}, "row 0, column 'chosen': expected a string, found int"),
        (
            "pairs",
            PAIR | {"chosen": "\ud800"},
            {},
            "row 0, column 'chosen': the text has a lone surrogate at character 0",
        ),
        ("pairs", PAIR | {"prompt": "a\ud800"}, {"template": "chat"}, "row 0, column 'prompt': .* at character 1"),
        (
            "pairs",
            PAIR | {"prompt": [{"role": "user", "content": "\ud800"}]},
            {"template": "chat"},
            "row 0, column 'prompt': the text has a lone surrogate",
        ),
        (
            "pairs",
            PAIR | {"rejected": [{"role": "assistant", "content": "\ud800"}]},
            {"template": "chat"},
            "row 0, column 'rejected': the text has a lone surrogate",
        ),
        (
            "pairs",
            PAIR | {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ud800"}]},
            {"template": "chat", "prompt_field": None},
            "row 0, column 'chosen': the text has a lone surrogate",
        ),
        ("pairs", PAIR | {"by": 10**400}, {"margin_field": "by"}, "column 'by': expected a finite number, found 1000"),
        ("pairs", PAIR, {"margin_field": "by"}, "row 0: no column 'by'"),
        ("pairs", PAIR | {"by": "much"}, {"margin_field": "by"}, "column 'by': expected a finite number, found 'much'"),
        ("pairs", PAIR, {"prompt_field": None, "template": "chat"}, "column 'chosen': a transcript begins with"),
        (
            "pairs",
            {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"},
            {"prompt_field": None, "template": "chat"},
            "column 'chosen': the last turn is to be judged, and it is the user's",
        ),
        ("lists", {"prompt": "a", "completions": ["b"]}, {}, "column 'completions': expected a list of at least two"),
        ("lists", {"prompt": "a", "completions": ["b", 3]}, {}, "column 'completions', number 1: expected a string"),
        ("outcomes", {"prompt": "a", "completion": "b", "label": 2}, {}, "column 'label': the label is 2.0, and"),
        ("outcomes", {"prompt": "a", "completion": "b", "label": float("nan")}, {}, "expected a finite number"),
        ("outcomes", {"prompt": "a", "completion": "b", "label": -(10**400)}, {}, "column 'label': expected a finite"),
        ("steps", STEPS | {"steps": []}, {}, "column 'steps': expected a list of objects"),
        ("steps", STEPS | {"steps": [{"start": 0, "end": 2}]}, {}, "step 0: expected a finite number, found None"),
        (
            "steps",
            STEPS,
            {},
            r"row 0, column 'steps', step 0: it ends at 2, where data\.step_separator '\\n' ends",
        ),
        ("steps", STEPS | {"completion": "2  so 2"}, {"step_separator": " "}, r"ends no step \('2 ', then ' so 2'\)"),
        ("steps", STEPS | {"steps": [{"start": 1, "end": 9, "label": 1}]}, {}, "0 <= start < end <= 6"),
        ("steps", STEPS | {"steps": [*STEPS["steps"], {"start": 1, "end": 3, "label": 1}]}, {}, "step 1: start 1"),
        ("steps", STEPS | {"steps": [{"text": "4", "label": 1}]}, {}, "texts do not make up the column 'completion'"),
        ("pairs", PAIR, {"validation_share": 0.9}, "of 1 rows 0 are left to learn|and 0 for validation"),
    ],
)
def test_a_fault_is_named_by_row_and_column(
    form: ExampleForm, row: Any, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, form, row, **settings)
    assert "rows.jsonl" in str(caught.value)
