"""From data rows to prompts: templates, lengths, order, and every kind of bad row."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rollout_workers.demonstrations import load_demonstrations
from rollout_workers.prompts import DataConfig, PromptStream, RowOrder, load_prompts
from rollout_workers.rows import read_rows
from services.contracts.errors import UserError
from services.contracts.records import Message
from tests.fakes import make_prompt
from tests.tiny import tiny_tokenizer

CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_rows(folder: Path, *rows: object) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_plain_text_is_continued_as_it_is(tmp_path: Path, tokenizer: Any) -> None:
    data = DataConfig(
        prompts=write_rows(tmp_path, {"prompt": "1+1=", "answer": "2"}), template="plain", reference_field="answer"
    )
    prompt = load_prompts(data, tokenizer, max_prompt_tokens=9).prompts[0]
    assert prompt.text == "1+1="
    assert tokenizer.decode(list(prompt.token_ids)) == "1+1="
    assert prompt.reference == {"answer": "2"}
    assert prompt.messages == ()


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("2", {"answer": "2", "kind": "math"}), ({"unit": "m"}, {"unit": "m", "kind": "math"})],
)
def test_further_columns_join_the_reference(
    tmp_path: Path, tokenizer: Any, answer: object, reference: dict[str, str]
) -> None:
    row = {"prompt": "1+1=", "answer": answer, "kind": "math", "other": "x"}
    data = DataConfig(
        prompts=write_rows(tmp_path, row), template="plain", reference_field="answer", reference_columns=("kind",)
    )
    assert load_prompts(data, tokenizer, max_prompt_tokens=9).prompts[0].reference == reference


def test_a_chat_prompt_gets_the_template_and_the_system_turn(tmp_path: Path, tokenizer: Any) -> None:
    data = DataConfig(prompts=write_rows(tmp_path, {"prompt": "hi"}), system="be kind")
    prompt = load_prompts(data, tokenizer, max_prompt_tokens=99).prompts[0]
    assert prompt.text == "system: be kind user: hi assistant:"
    assert prompt.messages == (Message(role="system", content="be kind"), Message(role="user", content="hi"))


def test_turns_and_columns_can_be_combined_freely(tmp_path: Path, tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    data = DataConfig(prompts=write_rows(tmp_path, {"prompt": turns}))
    assert (
        load_prompts(data, tokenizer, max_prompt_tokens=99).prompts[0].text == "user: a assistant: b user: c assistant:"
    )
    data = DataConfig(prompts=write_rows(tmp_path, {"a": 1, "b": 2}), template="plain", prompt_format="{a}+{b}=")
    assert load_prompts(data, tokenizer, max_prompt_tokens=99).prompts[0].text == "1+2="


def test_json_and_parquet_hold_the_same_prompts_as_json_lines(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "1+1="}, {"prompt": "2+2="}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    texts = []
    for name in (write_rows(tmp_path, *rows), str(tmp_path / "rows.json"), str(tmp_path / "rows.parquet")):
        prompts = load_prompts(DataConfig(prompts=name, template="plain"), tokenizer, max_prompt_tokens=9)
        texts.append([prompt.text for prompt in prompts.prompts])
    assert texts == [["1+1=", "2+2="]] * 3


@pytest.mark.parametrize(("policy", "kept"), [("truncate", ["11", "45"]), ("drop", ["11"])])
def test_long_prompts_follow_the_policy_and_are_counted(
    tmp_path: Path, tokenizer: Any, policy: Any, kept: list[str]
) -> None:
    data = DataConfig(
        prompts=write_rows(tmp_path, {"prompt": "11"}, {"prompt": "12345"}), template="plain", long_prompts=policy
    )
    prompts = load_prompts(data, tokenizer, max_prompt_tokens=2)
    assert [tokenizer.decode(list(prompt.token_ids)) for prompt in prompts.prompts] == kept
    assert (prompts.num_truncated, prompts.num_dropped) == ((1, 0) if policy == "truncate" else (0, 1))


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"question": "x"}], {}, r"row 0: no column 'prompt'; the row has \['question'\]"),
        ([{"prompt": "x"}, {"prompt": 7}], {}, "row 1, column 'prompt': a plain prompt is a string, not int"),
        ([{"prompt": "x\ud800"}], {}, "row 0, column 'prompt': the text has a lone surrogate at character 1"),
        (
            [{"prompt": "x\ud800"}],
            {"template": "chat"},
            "column 'prompt': the text has a lone surrogate at character 1",
        ),
        (
            [{"prompt": [{"role": "user", "content": "\ud800"}]}],
            {"template": "chat"},
            "column 'prompt': the text has a lone surrogate at character 0",
        ),
        ([{"prompt": "x"}], {"template": "chat", "system": "\ud800"}, "lone surrogate at character 0"),
        ([{"prompt": "123456"}], {}, "row 0: the prompt has 6 tokens and 5 fit; raise model.max_length"),
        ([{"prompt": ""}], {}, "row 0: the prompt is empty"),
        ([], {}, "the data set is empty"),
        ([[1]], {}, "row 0: expected an object with named columns, found list"),
        ([{"prompt": "x"}], {"reference_field": "gold"}, "no column 'gold'"),
        ([{"prompt": "x"}], {"reference_columns": ("kind",)}, "no column 'kind'"),
        ([{"prompt": "x"}], {"prompt_format": "{y}"}, r"row 0: no column 'y'; the row has \['prompt'\]"),
        ([{"q": "x"}, {"q": None}], {"prompt_format": "{q}"}, r"row 1: no column 'q'; the row has \['q'\]"),
        (
            [{"q": {"a": 1}}],
            {"prompt_format": "{q}"},
            r"row 0, column 'q': .* writes \{q\}, which is \{'a': 1\} and no",
        ),
        ([{"q": ["a"]}], {"prompt_format": "{q!s}"}, "row 0, column 'q': .* and no text or number"),
        ([{"q": {"a": None}}], {"prompt_format": "{q[a]}"}, r"row 0, column 'q': .* writes \{q\[a\]\}, which is None"),
        ([{"q": {"a": 1}}], {"prompt_format": "{q[b]}"}, r"prompt_format '\{q\[b\]\}' does not suit the row: KeyError"),
        ([{"q": "x"}], {"prompt_format": "{q[a]}"}, "does not suit the row: TypeError.*string indices"),
        ([{"q": "x"}], {"prompt_format": "{q[9]}"}, "does not suit the row: IndexError"),
        (
            [{"q": "x"}],
            {"prompt_format": "{q:.2f}"},
            "row 0: data.prompt_format '{q:.2f}' does not suit .*format code 'f'",
        ),
        ([{"q": "x", "w": 1}], {"prompt_format": "{q:{w.x}}"}, "does not suit the row: AttributeError"),
        ([{"q": "\ud800"}], {"prompt_format": "Q: {q}"}, "row 0: the text has a lone surrogate at character 3"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_column(
    tmp_path: Path, tokenizer: Any, rows: list[object], changes: dict[str, Any], message: str
) -> None:
    source = write_rows(tmp_path, *rows)
    with pytest.raises(UserError, match=message) as raised:
        load_prompts(
            DataConfig.model_validate({"prompts": source, "template": "plain"} | changes),
            tokenizer,
            max_prompt_tokens=5,
        )
    assert source in str(raised.value)


def test_a_format_writes_columns_and_what_objects_in_them_have(tmp_path: Path, tokenizer: Any) -> None:
    source = write_rows(tmp_path, {"two words": "a", "n": 0.5, "o": {"p": [{"q": False}]}})
    data = DataConfig(prompts=source, template="plain", prompt_format="{{{two words:>2}}} {n:.2f} {o[p][0][q]!r}")
    assert load_prompts(data, tokenizer, max_prompt_tokens=99).prompts[0].text == "{ a} 0.50 False"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{q} }", "Single '}' encountered in format string; write a brace of the text itself twice"),
        ("{q", "expected '}' before end of string"),
        ("{}", "{} is no column"),
        ("{0}", "{0} is no column"),
        ("{1[a]}", "{1[a]} is no column"),
        ("{q.lower}", "{q.lower} is no column; write {column}, or {column[name]} of an object"),
    ],
)
def test_a_format_that_suits_no_row_is_refused_with_the_configuration(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"prompt_format(.|\n)*{re.escape(message)}"):
        DataConfig(prompts="rows.jsonl", prompt_format=template)


def test_bad_files_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a"}\n{"prompt": ')
    with pytest.raises(UserError, match=r"torn.jsonl, row 1: not valid JSON"):
        load_prompts(DataConfig(prompts=str(tmp_path / "torn.jsonl")), tokenizer, max_prompt_tokens=5)
    (tmp_path / "no.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        load_prompts(DataConfig(prompts=str(tmp_path / "no.parquet")), tokenizer, max_prompt_tokens=5)
    with pytest.raises(UserError, match=r"missing.jsonl' does not exist"):
        load_prompts(DataConfig(prompts="missing.jsonl"), tokenizer, max_prompt_tokens=5)


@pytest.mark.parametrize(
    ("compression", "whole", "damaged"),
    [("none", b"question", b"\xff\xff\xff\xff\xff\xff\xff\xff"), ("zstd", b"\x28\xb5\x2f\xfd", bytes(4))],
)
def test_a_parquet_file_with_damaged_texts_or_pages_is_refused(
    tmp_path: Path, compression: str, whole: bytes, damaged: bytes
) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"prompt": [f"question {number}" for number in range(99)]})
    pyarrow.parquet.write_table(table, path, compression=compression, use_dictionary=False)
    assert whole in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(whole, damaged))
    with pytest.raises(UserError, match=r"rows.parquet: not a readable Parquet file"):
        read_rows(str(path))


def test_every_fault_counts_rows_alike(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    for row, fault in (('{"prompt":', "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("{}", "no column")):
        path.write_text(f'{{"prompt": "1"}}\n\n  \n{row}\n')
        with pytest.raises(UserError, match=rf"rows\.jsonl, row 1: {fault}"):
            load_prompts(DataConfig(prompts=str(path), template="plain"), tokenizer, max_prompt_tokens=5)


def test_a_chat_without_a_template_names_the_remedy(tmp_path: Path) -> None:
    data = DataConfig(prompts=write_rows(tmp_path, {"prompt": "hi"}))
    with pytest.raises(UserError, match=r"has no chat template; set data\.template to plain"):
        load_prompts(data, tiny_tokenizer(), max_prompt_tokens=9)


def test_a_demonstration_learns_the_response_and_its_end(tmp_path: Path, tokenizer: Any) -> None:
    data = DataConfig(
        prompts=write_rows(tmp_path, {"prompt": "1+1=", "answer": "2"}), template="plain", response_field="answer"
    )
    (demonstration,) = load_demonstrations(data, tokenizer, max_length=9)
    assert tokenizer.decode(list(demonstration.token_ids[:5])) == "1+1=2"
    assert demonstration.token_ids[5] == tokenizer.eos_token_id
    assert list(demonstration.loss_mask) == [0, 0, 0, 0, 1, 1]


def test_of_a_text_every_token_is_learnt_but_the_first(tmp_path: Path, tokenizer: Any) -> None:
    data = DataConfig(prompts=write_rows(tmp_path, {"text": "once upon"}), text_field="text")
    (demonstration,) = load_demonstrations(data, tokenizer, max_length=10)
    assert tokenizer.decode(list(demonstration.token_ids[:9])) == "once upon"
    assert demonstration.token_ids[9] == tokenizer.eos_token_id
    assert list(demonstration.loss_mask) == [0] + [1] * 9
    for row, message in (({"text": ""}, "row 1, column 'text': the text is empty"), ({"text": 3}, "expected a string")):
        bad = DataConfig(prompts=write_rows(tmp_path, {"text": "a"}, row), text_field="text")
        with pytest.raises(UserError, match=message):
            load_demonstrations(bad, tokenizer, max_length=10)
    with pytest.raises(UserError, match="row 0: it has 10 tokens and the limit is 9"):
        load_demonstrations(
            data.model_copy(update={"prompts": write_rows(tmp_path, {"text": "once upon"})}), tokenizer, max_length=9
        )


def test_the_order_is_a_function_of_seed_and_position() -> None:
    prompts = [make_prompt(row) for row in range(7)]
    whole = PromptStream(prompts, RowOrder(7, seed=3, shuffle=True))
    drawn = [whole.draw().id for _ in range(14)]
    resumed = PromptStream(prompts, RowOrder(7, seed=3, shuffle=True, position=5))
    assert [resumed.draw().id for _ in range(9)] == drawn[5:]
    assert sorted(drawn[:7]) == [f"0-{row}" for row in range(7)]
    assert sorted(drawn[7:]) == [f"1-{row}" for row in range(7)]
    assert [id_.split("-")[1] for id_ in drawn[:7]] != [id_.split("-")[1] for id_ in drawn[7:]]
