"""Preference data from a judge: what is written, what is not, and how a job that was stopped goes on."""

import asyncio
import json
from pathlib import Path

import pytest

from reward_server.judges.comparison import Comparison
from reward_server.judges.faults import JudgeFault
from rollout_workers.preference_data import PreferenceDataConfig, load_preferences
from rollout_workers.prompts import DataConfig, load_prompts
from rollout_workers.reward_rows import RewardDataConfig, read_judged_row
from rollout_workers.rows import read_rows
from services.cli.__main__ import main
from services.cli.arguments import load_config
from services.contracts.errors import TriremeError, UserError
from services.contracts.records import Reward, RolloutGroup, ScoredGroup
from services.control.candidates import CandidatesConfig, Pair, load_pairs
from services.control.event_log import EVENTS_FILE
from services.control.metrics import SAMPLES_FILE, SampleLog
from services.control.pair_labels import LabelConfig, Labelled, label
from services.control.pair_statistics import Judged, Share, pair_statistics
from tests.end_to_end.command import json_lines, write_config
from tests.fakes import make_rollout
from tests.reward_server.fake_judge import (
    Answer,
    Body,
    FakeEndpoint,
    Mind,
    Said,
    always_a,
    fake_endpoint,
    prefers,
    texts_of,
)
from tests.tiny import tiny_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "label_pairs.yaml"
ROWS = [
    {"prompt": "Why?", "completion": "Because it is so."},
    {"prompt": [{"role": "user", "content": "Who?"}], "completion": "Me."},
    {"prompt": "Why?", "completion": "No idea."},
    {"prompt": [{"role": "user", "content": "Who?"}], "completion": "You and me."},
    {"prompt": "Why?", "completion": "No idea."},
    {"prompt": "Alone?", "completion": "Yes."},
]


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, dict[str, object]]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"run": {"dir": str(tmp_path / "labels")}, "candidates": {"rows": str(rows)}}


def to_config(sections: dict[str, dict[str, object]], endpoint: FakeEndpoint, **judge: object) -> LabelConfig:
    return LabelConfig.model_validate({**sections, "judge": endpoint.config(**judge).model_dump()})


async def labelled(sections: dict[str, dict[str, object]], mind: Mind) -> Labelled:
    async with fake_endpoint(mind) as endpoint:
        return await label(to_config(sections, endpoint), tell=print)


async def test_pairs_of_one_prompt_become_preferences_that_a_reward_model_reads(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    await labelled(sections, prefers(len))

    path = tmp_path / "labels" / "preferences.jsonl"
    why, who = json_lines(path)
    assert str(why.pop("judge")).startswith("fake-judge@")
    assert why == {"prompt": "Why?", "chosen": "Because it is so.", "rejected": "No idea.", "margin": 2.0}
    assert (who["prompt"], who["chosen"]) == ([{"role": "user", "content": "Who?"}], "You and me.")
    data = RewardDataConfig(examples=str(path), margin_field="margin", template="chat")
    judged = [read_judged_row(row, data, form="pairs", any_label=False, where="row") for row in read_rows(str(path))]
    assert [row.targets for row in judged] == [(2.0, 0.0)] * 2
    assert judged[1].answers[1].completion == "Me."


async def test_a_judge_of_the_first_place_labels_nothing_and_is_told_apart(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    sections["candidates"]["rows"] = str(tmp_path / "lists.jsonl")
    sections["candidates"]["completions_field"] = "answers"
    (tmp_path / "lists.jsonl").write_text(
        "".join(json.dumps({"prompt": str(number), "answers": ["x", "yy", "zzz"]}) + "\n" for number in range(4))
    )
    found = await labelled(sections, always_a)
    assert (tmp_path / "labels" / "preferences.jsonl").read_text() == ""
    assert found.statistics.agreement == Share(count=0, total=12)
    assert found.statistics.chose_a == Share(count=24, total=24) and found.statistics.chose_a.leans
    written = json.loads((tmp_path / "labels" / "statistics.json").read_text())
    assert written["chose_a"]["low"] > 0.5 and written["questions"] == 24


def fails_from(number: int, fault: Answer, mind: Mind) -> Mind:
    """Answers so many questions and then has a fault."""
    asked = iter(range(1000))
    return lambda body: fault if next(asked) >= number else mind(body)


async def test_a_stopped_job_keeps_what_it_has_and_goes_on_with_the_rest(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    broken = fails_from(2, Answer(status=401, content=b"no credit"), prefers(len))
    async with fake_endpoint(broken) as endpoint:
        config = to_config(sections, endpoint, max_in_flight=1)
        with pytest.raises(JudgeFault, match="no credit"):
            await label(config, tell=print)
        assert len(json_lines(tmp_path / "labels" / "preferences.jsonl")) == 1

        with (tmp_path / "labels" / EVENTS_FILE).open("a") as log:
            log.write('{"event": "judg')  # What a crash leaves.
        endpoint.mind, endpoint.bodies = prefers(len), []
        done = await label(config, tell=print)
        assert len(endpoint.bodies) == 2
        assert len(json_lines(tmp_path / "labels" / "preferences.jsonl")) == 2
        assert done.counts.input_tokens == 400  # Of both starts.

        endpoint.bodies = []
        await label(config, tell=print)
        assert endpoint.bodies == []


async def test_verdicts_of_another_judge_are_not_mixed_in(sections: dict[str, dict[str, object]]) -> None:
    async with fake_endpoint(prefers(len)) as endpoint:
        await label(to_config(sections, endpoint), tell=print)
        sections["comparison"] = {"measure": "The shorter answer is better."}
        with pytest.raises(
            UserError, match=r"holds verdicts of fake-judge@\w+, and this would add verdicts of fake-judge@\w+"
        ):
            await label(to_config(sections, endpoint), tell=print)


async def test_pairs_of_a_chat_run_are_learnt_behind_the_prompt_that_it_sampled(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:"
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+2="}')
    data = DataConfig(prompts=str(tmp_path / "prompts.jsonl"), system="add")
    (prompt,) = load_prompts(data, tokenizer, max_prompt_tokens=99).prompts
    rollouts = tuple(
        make_rollout(prompt, sample_index=index, completion=text) for index, text in enumerate(("3", "12"))
    )
    group = ScoredGroup(group=RolloutGroup(prompt=prompt, rollouts=rollouts), rewards=(Reward(value=0.0),) * 2)
    with SampleLog(tmp_path / "run", samples_per_step=2) as log:
        log.record(1, [group])
    sections["candidates"]["rows"] = str(tmp_path / "run" / SAMPLES_FILE)

    await labelled(sections, prefers(len))

    preferences = PreferenceDataConfig(
        examples=str(tmp_path / "labels" / "preferences.jsonl"), template="chat", validation_share=0.0
    )
    found = load_preferences(preferences, tokenizer, form="pairs", max_tokens=99, seed=0)
    (pair,) = found.training
    assert [list(completion.token_ids) for completion in pair.completions] == [
        [*prompt.token_ids, *tokenizer.encode(text), tokenizer.eos_token_id] for text in ("12", "3")
    ]


async def test_a_pair_without_a_verdict_is_left_out_and_asked_about_again(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    fair = prefers(len)

    def mumbles(body: Body) -> Said:
        return "Hmm." if texts_of(body)["PROMPT"] == "Why?" else fair(body)

    found = await labelled(sections, mumbles)
    assert (found.num_failed, found.num_pairs) == (1, 2)
    assert [row["chosen"] for row in json_lines(tmp_path / "labels" / "preferences.jsonl")] == ["You and me."]

    sections["run"]["max_failed"] = 0
    sections["run"]["dir"] = str(tmp_path / "again")
    with pytest.raises(TriremeError, match=r"run\.max_failed is 0.*no JSON object"):
        await labelled(sections, mumbles)


async def test_a_pair_that_takes_the_judge_too_long_is_left_out_and_counted(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    fair = prefers(len)

    def ponders(body: Body) -> Said:
        return Answer(hang=True) if texts_of(body)["PROMPT"] == "Why?" else fair(body)

    async with fake_endpoint(ponders) as endpoint:
        config = to_config(sections, endpoint, timeout_s=0.2, max_attempts=2)
        found = await label(config, tell=print)
        assert (found.num_failed, found.num_pairs) == (1, 2)
        failed = [event for event in json_lines(tmp_path / "labels" / EVENTS_FILE) if event["event"] == "failed"]
        assert len(failed) == 1 and "did not answer within 0.2 s (judge.timeout_s)" in failed[0]["message"]

        endpoint.mind = fair
        assert (await label(config, tell=print)).num_failed == 0
        assert len(json_lines(tmp_path / "labels" / "preferences.jsonl")) == 2


async def test_a_judge_that_answers_nothing_at_all_is_not_waited_for_again_and_again(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = [{"prompt": f"Why {index}?", "completion": text} for index in range(6) for text in ("Yes.", "No.")]
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
    many: dict[str, dict[str, object]] = {"run": {"dir": str(tmp_path / "out")}, "candidates": {"rows": str(rows)}}
    async with fake_endpoint(lambda body: Answer(hang=True)) as endpoint:
        with pytest.raises(JudgeFault, match="did not answer within"):
            await label(to_config(many, endpoint, timeout_s=0.1, max_attempts=1, max_in_flight=2), tell=print)
    failed = [event for event in json_lines(tmp_path / "out" / EVENTS_FILE) if event["event"] == "failed"]
    assert len(failed) == 3  # One more than are asked about at once.


async def test_the_command_tells_what_it_found_and_how_it_goes_on(
    sections: dict[str, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with fake_endpoint(prefers(len)) as endpoint:
        judge = endpoint.config(output_price=1000, max_reply_tokens=10, budget=0.025, max_in_flight=1)
        path = write_config(tmp_path / "label.yaml", **sections, judge=judge.model_dump(mode="json"))
        assert await asyncio.to_thread(main, ["label-pairs", path]) == 1
        told = capsys.readouterr().err
        assert "the budget of fake-judge at" in told and "the same command goes on from there" in told

        assert await asyncio.to_thread(main, ["label-pairs", path, "--judge.budget", "1"]) == 0
        told = capsys.readouterr().out
        assert "preferences      2 of 2 (95% interval 34% to 100%)" in told
        assert "orders agree     2 of 2" in told
        assert "0.0400 paid" in told


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Why?"}, r"rows\.jsonl, row 0: no column 'completion'; the row has \['prompt'\]"),
        ({"completion": "x"}, "no column 'prompt'"),
        ({"prompt": 7, "completion": "x"}, r"column 'prompt': expected a string or a list"),
        ({"prompt": [{"role": "user"}], "completion": "x"}, r"column 'prompt': expected a string or a list"),
        ({"prompt": "Why?", "completion": ["x"]}, "column 'completion': expected a string"),
        ({"prompt": "\ud800", "completion": "x"}, "column 'prompt': the text has a lone surrogate at character 0"),
        (
            {"prompt": [{"role": "user", "content": "\ud800"}], "completion": "x"},
            "column 'prompt': the text has a lone",
        ),
        ({"prompt": "Why?", "completion": "x\ud800"}, "column 'completion': the text has a lone surrogate"),
        ({"prompt": "Why?", "completion": "x"}, "none of 1 prompts has two completions that differ"),
    ],
)
def test_rows_that_make_no_pair_are_told_by_column(tmp_path: Path, row: dict[str, object], words: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=words):
        load_pairs(CandidatesConfig(rows=str(tmp_path / "rows.jsonl")), seed=0)


def test_which_pairs_are_drawn_depends_on_the_seed_alone(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "p", "all": [str(number) for number in range(9)]}))
    config = CandidatesConfig(rows=str(rows), completions_field="all", pairs_per_prompt=5)
    drawn = load_pairs(config, seed=0)
    assert load_pairs(config, seed=0) == drawn != load_pairs(config, seed=1)
    assert len({pair.id for pair in drawn}) == 5


def test_statistics_by_hand() -> None:
    def judged(first: str, second: str, forward: int, backward: int) -> Judged:
        pair = Pair(id="", prompt="", first=first, second=second)
        return Judged(pair=pair, comparison=Comparison(forward=forward, backward=backward))

    found = pair_statistics(
        [
            judged("long", "no", 2, 3),  # agrees on the longer first
            judged("no", "long", 1, 1),  # agrees on the shorter first
            judged("no", "long", 1, -2),  # A both times
            judged("no", "long", 0, -1),  # a tie, then A
            judged("no", "long", 0, 0),  # a tie twice
        ]
    )
    assert found.agreement == Share(count=3, total=5)
    assert found.decided == Share(count=2, total=5)
    # Pair by pair the verdicts are A B, A B, A A, A and none.
    assert found.chose_a == Share(count=5, total=7)
    assert found.chose_longer == Share(count=1, total=2)


def test_the_interval_of_a_share_is_wilsons() -> None:
    # 8 of 10: (0.8 + 0.19207 ± 1.96 · sqrt(0.016 + 0.0096036)) / 1.38415.
    assert Share(count=8, total=10).interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert Share(count=0, total=0).interval == (0.0, 1.0)
    assert [Share(count=count, total=100).leans for count in (39, 41, 61)] == [True, False, True]


def test_the_example_is_a_valid_configuration() -> None:
    config = load_config(LabelConfig, [str(EXAMPLE)], prog="", summary="")
    assert config.run.dir == Path("runs/labels")
