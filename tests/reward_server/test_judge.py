"""Asking a judge: what is sent, kept, retried, limited and paid, and what becomes of every fault."""

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from reward_server.judges.chat_protocol import Reply
from reward_server.judges.config import JudgeConfig
from reward_server.judges.endpoint import seconds_until
from reward_server.judges.faults import JudgeFault
from reward_server.judges.judge import open_judge, version_of
from reward_server.judges.pace import Pace
from reward_server.judges.question import Key, Question
from reward_server.judges.store import open_store
from services.contracts.errors import UserError
from services.contracts.records import FailureCode
from tests.reward_server.fake_judge import Answer, Body, Mind, completion, fake_endpoint

VERDICT = {"grade": Key(meaning="the grade", values=(1, 2, 3))}


def question(text: str = "some text") -> Question:
    return Question(task="Grade the text.", texts={"TEXT": text}, verdict=VERDICT)


def grade_two(body: Body) -> dict[str, object]:
    return {"grade": 2}


def in_turn(*said: object) -> Mind:
    """Says each in turn, and the last for ever."""
    left: Iterator[object] = iter(said)
    return lambda body: next(left, said[-1])  # type: ignore[return-value]  # whatever a mind may say


async def test_a_question_is_sent_once_and_its_verdict_read() -> None:
    async with fake_endpoint(grade_two) as endpoint, open_judge(endpoint.config()) as judge:
        assert await judge.ask(question()) == {"grade": 2}
        (body,) = endpoint.bodies
        assert body["model"] == "fake-judge" and body["temperature"] == 0
        assert body["response_format"]["json_schema"]["schema"]["properties"] == {
            "grade": {"type": "integer", "enum": [1, 2, 3]}
        }


async def test_the_same_question_is_paid_for_once_however_many_ask_it() -> None:
    async with fake_endpoint(grade_two) as endpoint:
        config = endpoint.config(input_price=10.0, output_price=100.0)
        async with open_judge(config) as judge:
            verdicts = await asyncio.gather(*(judge.ask(question()) for _ in range(5)))
            verdicts.append(await judge.ask(question()))
            assert verdicts == [{"grade": 2}] * 6
            assert len(endpoint.bodies) == 1
            assert judge.counts.cache_hits == 5
            # 100 tokens at 10 a million, and 10 at 100 a million.
            assert judge.counts.paid == pytest.approx(0.002)


async def test_what_was_asked_is_written_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with fake_endpoint(grade_two) as endpoint, open_judge(endpoint.config(input_price=10.0)) as judge:
        await judge.ask(question())
        await judge.ask(question())
    (line,) = (record for record in caplog.records if record.name == "reward_server.judges.judge")
    assert "2 questions, 1 cache hits, 0 unreadable, 100 input tokens, 10 output tokens, 0.001 paid" in line.message
    assert line.__dict__["facts"]["requests"] == 1


async def test_a_waiter_that_leaves_does_not_take_the_answer_from_the_others() -> None:
    async with fake_endpoint(grade_two) as endpoint, open_judge(endpoint.config()) as judge:
        first, second = (asyncio.create_task(judge.ask(question())) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == {"grade": 2}


async def test_an_answer_that_nobody_waits_for_any_more_is_kept() -> None:
    async with fake_endpoint(grade_two) as endpoint, open_judge(endpoint.config()) as judge:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(judge.ask(question()), 0.005)
        assert await judge.ask(question()) == {"grade": 2}
        assert len(endpoint.bodies) == 1


async def test_a_cache_file_answers_after_a_restart_even_without_the_endpoint_being_asked(tmp_path: Path) -> None:
    async with fake_endpoint(grade_two) as endpoint:
        for _ in range(2):
            async with open_judge(endpoint.config(cache=tmp_path / "cache.sqlite")) as judge:
                assert await judge.ask(question()) == {"grade": 2}
        async with open_judge(endpoint.config(cache=tmp_path / "cache.sqlite", temperature=0.5)) as judge:
            await judge.ask(question())
        assert [body["temperature"] for body in endpoint.bodies] == [0, 0.5]


def test_processes_share_a_cache_file_from_its_first_moment(tmp_path: Path) -> None:
    work = """
import sys
from pathlib import Path
from reward_server.judges.store import open_store
from reward_server.judges.chat_protocol import Reply
sys.stdin.readline()
with open_store(Path(sys.argv[1])) as store:
    for number in range(200):
        store.put(number.to_bytes(2, "big"), Reply(text=str(number), input_tokens=1, output_tokens=1))
        store.pay("judge", 0.5)
"""
    path = tmp_path / "cache.sqlite"
    command = [sys.executable, "-c", work, str(path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with open_store(path) as store:
        assert store.paid("judge") == 300.0
        assert store.get((199).to_bytes(2, "big")) == Reply(text="199", input_tokens=1, output_tokens=1)


@pytest.mark.parametrize("content", [b"not a database, but some text that is long enough" * 20, None])
def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.db"
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE precious (x)")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"judge\.cache to another file"), open_store(path):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "passing",
    [
        Answer(status=500, content=b"oops"),
        Answer(status=429, headers={"Retry-After": "0.2"}),
        Answer(content=b"<html>not JSON</html>"),
        Answer(content=b'{"choices": []}'),
        Answer(content=b'{"choices": ' + b"[" * 100_000),
    ],
)
async def test_what_may_pass_is_tried_again(passing: Answer) -> None:
    async with fake_endpoint(in_turn(passing, {"grade": 3})) as endpoint, open_judge(endpoint.config()) as judge:
        start = time.monotonic()
        assert await judge.ask(question()) == {"grade": 3}
        assert len(endpoint.bodies) == 2
        if passing.status == 429:
            assert time.monotonic() - start > 0.2


@pytest.mark.parametrize(
    ("said", "code", "retryable", "num_requests", "words"),
    [
        (Answer(status=503), FailureCode.UNAVAILABLE, True, 3, "status 503"),
        (Answer(status=429), FailureCode.OVERLOADED, True, 3, "status 429"),
        (Answer(status=429, headers={"Retry-After": "3600"}), FailureCode.OVERLOADED, True, 1, "no more for 3600 s"),
        (Answer(status=400, content=b"context too long"), FailureCode.INVALID_SAMPLE, False, 1, "context too long"),
        (Answer(status=404, content=b"no such model"), FailureCode.UNAVAILABLE, False, 1, "no such model"),
        (Answer(hang=True), FailureCode.TIMEOUT, True, 2, r"within 0.2 s"),
        (Answer(content=b"x" * (5 << 20)), FailureCode.UNAVAILABLE, True, 2, "more than"),
        ("I like it.", FailureCode.INTERNAL, False, 2, "no JSON object"),
        ("NaN", FailureCode.INTERNAL, False, 2, "exactly the keys grade"),
        ('{"grade": 7}', FailureCode.INTERNAL, False, 2, "one of 1, 2, 3"),
        ('{"grade": true}', FailureCode.INTERNAL, False, 2, "one of 1, 2, 3"),
        ('{"grade": 1, "grade": 3}', FailureCode.INTERNAL, False, 2, "no JSON object"),
        (completion('{"grade": 3}', finish_reason="length"), FailureCode.INTERNAL, False, 2, "cut at"),
        (completion(""), FailureCode.INTERNAL, False, 2, "no JSON object"),
    ],
)
async def test_a_fault_that_stays_is_a_typed_failure_and_never_a_number(
    said: object, code: FailureCode, retryable: bool, num_requests: int, words: str
) -> None:
    async with fake_endpoint(in_turn(said)) as endpoint:
        quick = {"timeout_s": 0.2, "max_attempts": 2} if code is FailureCode.TIMEOUT or "more than" in words else {}
        async with open_judge(endpoint.config(**quick)) as judge:
            with pytest.raises(JudgeFault, match=words) as caught:
                await judge.ask(question())
            assert (caught.value.failure.code, caught.value.failure.retryable) == (code, retryable)
            assert len(endpoint.bodies) == num_requests
            assert judge.counts.unreadable == (2 if code is FailureCode.INTERNAL else 0)


async def test_a_reply_that_cannot_be_read_is_asked_for_again_with_the_reason_and_not_kept(tmp_path: Path) -> None:
    mind = in_turn("Great text!", {"grade": 1})
    async with fake_endpoint(mind) as endpoint, open_judge(endpoint.config(cache=tmp_path / "cache")) as judge:
        assert await judge.ask(question()) == {"grade": 1}
        first, second = (body["messages"][1]["content"] for body in endpoint.bodies)
        assert second.startswith(first) and "because it is no JSON object" in second
        await judge.ask(question())
        assert len(endpoint.bodies) == 3


async def test_requests_under_way_are_bounded() -> None:
    async with fake_endpoint(grade_two) as endpoint, open_judge(endpoint.config(max_in_flight=3)) as judge:
        await asyncio.gather(*(judge.ask(question(str(number))) for number in range(12)))
        assert endpoint.most_at_once == 3


async def test_requests_keep_to_the_rate() -> None:
    async with fake_endpoint(grade_two) as endpoint, open_judge(endpoint.config(requests_per_minute=600)) as judge:
        start = time.monotonic()
        await asyncio.gather(*(judge.ask(question(str(number))) for number in range(25)))
        # Ten a second; 21 may start at once, because the two seconds before were not used.
        assert time.monotonic() - start > 0.35


def test_a_pace_hands_out_start_times_in_order_after_a_burst() -> None:
    pace, now, starts = Pace(per_minute=60), 10.0, []
    for _ in range(6):
        now = max(now, pace.next_start())
        starts.append(now)
        pace.take(1, now=now)
    assert starts == [10.0, 10.0, 10.0, 11.0, 12.0, 13.0]
    assert pace.next_start() == 14.0
    pace.give_back(0.5)
    assert pace.next_start() == 13.5
    pace.take(1, now=100.0)
    assert pace.next_start() == 99.0
    unlimited = Pace(None)
    unlimited.take(1000, now=10.0)
    assert unlimited.next_start() < 10.0


async def test_who_waits_for_its_turn_also_waits_out_what_the_endpoint_asks_meanwhile() -> None:
    mind = in_turn(Answer(status=429, headers={"Retry-After": "0.6"}), {"grade": 2})
    async with fake_endpoint(mind) as endpoint, open_judge(endpoint.config(requests_per_minute=300)) as judge:
        # Eleven start at once; the others would after 0.2, 0.4 and 0.6 s.
        await asyncio.gather(*(judge.ask(question(str(number))) for number in range(14)))
        assert len(endpoint.arrivals) == 15
        assert endpoint.arrivals[11] - endpoint.arrivals[0] > 0.6


async def test_the_rate_of_tokens_counts_what_was_used() -> None:
    async with fake_endpoint(grade_two) as endpoint:
        config = endpoint.config(tokens_per_minute=6000, max_reply_tokens=5000, max_wait_s=2.0)
        async with open_judge(config) as judge:
            for number in range(3):
                await judge.ask(question(str(number)))


async def test_the_budget_holds_across_restarts_and_for_requests_under_way(tmp_path: Path) -> None:
    async with fake_endpoint(grade_two) as endpoint:
        # Each reply costs 0.01, and may cost 0.01 with its ten tokens.
        settings = {"output_price": 1000.0, "max_reply_tokens": 10, "budget": 0.045, "cache": tmp_path / "cache"}
        async with open_judge(endpoint.config(**settings)) as judge:
            await asyncio.gather(*(judge.ask(question(str(number))) for number in range(3)))
        async with open_judge(endpoint.config(**settings)) as judge:
            asked = [judge.ask(question(str(number))) for number in range(3, 6)]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            faults = [outcome for outcome in outcomes if isinstance(outcome, JudgeFault)]
            assert len(faults) == 2
            assert "0.0300 of 0.045 (judge.budget) are paid" in str(faults[0])
            assert (faults[0].failure.code, faults[0].failure.retryable) == (FailureCode.UNAVAILABLE, False)
            assert await judge.ask(question("0")) == {"grade": 2}
        assert len(endpoint.bodies) == 4


async def test_a_key_is_sent_in_its_header_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-canary-token")
    (tmp_path / "key").write_text("sk-canary-token\n")
    echoing = Answer(status=404, content=b"unknown key sk-canary-token")
    async with fake_endpoint(in_turn({"grade": 1}, echoing)) as endpoint:
        for source in ({"api_key_env": "JUDGE_KEY"}, {"api_key_file": tmp_path / "key"}):
            config = endpoint.config(**source)
            async with open_judge(config) as judge:
                caplog.set_level("DEBUG")
                outcome = await asyncio.gather(judge.ask(question()), return_exceptions=True)
            assert "authorization: bearer sk-canary-token" in endpoint.headers[-1].lower()
            shown = f"{config!r} {config.model_dump_json()} {outcome!r} {judge!r}"
            assert "canary" not in shown
        assert "unknown key ***" in str(outcome)
        assert "canary" not in "".join(record.getMessage() for record in caplog.records if record.name != "asyncio")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": "http://127.0.0.1:9/v1"}, r"127\.0\.0\.1:9/v1 cannot be reached.*judge\.base_url"),
        ({"model": "other"}, r"no model 'other'; it has fake-judge"),
        ({"api_key_env": "TRIREME_NO_SUCH_KEY"}, "TRIREME_NO_SUCH_KEY .* holds no API key"),
        ({"api_key_file": "no/such/file"}, "no/such/file .* cannot be read"),
        ({"cache": "/proc/no/cache"}, "cannot be opened"),
    ],
)
async def test_what_is_wrong_is_told_when_the_judge_is_opened(settings: dict[str, str], words: str) -> None:
    async with fake_endpoint(grade_two) as endpoint:
        with pytest.raises(UserError, match=words):
            async with open_judge(endpoint.config(**settings)):
                pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": "api.example/v1"}, "base_url must be"),
        ({"base_url": "http://user:pass@127.0.0.1/v1"}, "base_url must be"),
        ({"base_url": "http://judge.example/v1"}, "not encrypted"),
        ({"base_url": "http://judge.example/v1", "api_key_env": "K", "allow_plaintext": True}, "no network in plain"),
        ({"api_key_env": "K", "api_key_file": "f"}, "not both"),
        ({"budget": 1.0}, "needs input_price"),
        ({"parameters": {"messages": []}}, "may not set messages"),
        ({"api_key": "sk-canary"}, "api_key"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        JudgeConfig.model_validate({"base_url": "https://judge.example/v1", "model": "m"} | settings)


@pytest.mark.parametrize(
    "usage", [None, [], {}, {"prompt_tokens": -5, "completion_tokens": 1e400}, {"prompt_tokens": "7"}]
)
async def test_tokens_that_are_not_counted_are_guessed_so_that_what_is_paid_never_shrinks(usage: object) -> None:
    choice = {"message": {"content": '{"grade": 2}'}}
    answer = Answer(content=json.dumps({"choices": [choice], "usage": usage}).encode())
    async with fake_endpoint(in_turn(answer)) as endpoint, open_judge(endpoint.config(input_price=10.0)) as judge:
        await judge.ask(question())
        length = sum(len(message["content"]) for message in endpoint.bodies[0]["messages"])
        assert (judge.counts.input_tokens, judge.counts.output_tokens) == (length // 3, 4)
        assert judge.counts.paid > 0


async def test_half_a_character_in_a_reply_hurts_nothing(tmp_path: Path) -> None:
    reasoned = replace(question(), verdict={"reasons": Key(meaning="why"), **VERDICT})
    mind = in_turn('{"reasons": "\\ud800 \\u0000", "grade": 1}', completion('\ud800{"grade": 1}'))
    async with fake_endpoint(mind) as endpoint, open_judge(endpoint.config(cache=tmp_path / "cache")) as judge:
        assert (await judge.ask(reasoned))["grade"] == 1
        assert await judge.ask(reasoned) == await judge.ask(reasoned)
        with pytest.raises(JudgeFault, match="no JSON object"):
            await judge.ask(question())


async def test_what_is_not_encrypted_goes_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with fake_endpoint(grade_two) as endpoint, open_judge(endpoint.config()) as judge:
        assert await judge.ask(question()) == {"grade": 2}


async def test_parameters_add_to_a_request_and_take_from_it() -> None:
    parameters = {"max_tokens": None, "max_completion_tokens": 9}
    async with fake_endpoint(grade_two) as endpoint, open_judge(endpoint.config(parameters=parameters)) as judge:
        await judge.ask(question())
        assert endpoint.bodies[0]["max_completion_tokens"] == 9 and "max_tokens" not in endpoint.bodies[0]


def test_a_retry_after_is_seconds_or_a_date() -> None:
    assert seconds_until("1.5") == 1.5
    assert 0 < seconds_until("Wed, 01 Jan 2098 00:00:00 GMT") < 1e10
    assert [seconds_until(text) for text in ("", "-3", "nan", "inf", "soon", "Wed, 01 Jan 1998 00:00:00 GMT")] == [
        0
    ] * 6


def test_every_setting_of_a_judge_is_documented() -> None:
    assert all(described.description for described in JudgeConfig.model_fields.values())
    assert json.loads(JudgeConfig(base_url="https://judge.example/v1", model="m").model_dump_json())["budget"] is None


def test_a_judge_that_sees_less_of_a_long_text_is_another_version() -> None:
    config = JudgeConfig(base_url="http://127.0.0.1:8000/v1", model="fake-judge")
    sees_less = config.model_copy(update={"max_text_characters": 1000})
    assert version_of(config, question()) == version_of(config, question())
    assert version_of(config, question()) != version_of(sees_less, question())
