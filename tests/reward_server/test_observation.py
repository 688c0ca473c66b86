"""What a reward server tells of its calls: metrics, JSON logs, and spans in the trace of whoever called."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pytest

from reward_server.assembly import build_scorer
from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.logs import CURRENT_CALL, JsonFormatter
from reward_server.part_config import EnsembleConfig, RewardServiceConfig, RewardSource
from services.contracts.records import Failure, FailureCode, RewardSample
from services.protos.reward.v1 import reward_pb2, reward_pb2_grpc
from services.transport.tracing import ids_in, span
from tests.reward_server.fake_judge import fake_endpoint
from tests.reward_server.serving import Connect, listening, make_sample, make_samples, serving

ROOT = Path(__file__).parents[2]
MEASURED = RewardServerConfig(port=0, drain_s=0.0, metrics_port=0, max_samples_per_call=4)


def scraped(caplog: pytest.LogCaptureFixture) -> dict[str, float]:
    """Every metric of the server that was started last."""
    (url,) = re.findall(r"http://127\.0\.0\.1:\d+/metrics", caplog.text)
    with urllib.request.urlopen(url, timeout=5.0) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


async def test_metrics_count_calls_and_samples_by_how_they_ended(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    def score(sample: RewardSample) -> float | Failure:
        return 1.0 if sample.completion != "2" else Failure(code=FailureCode.INVALID_SAMPLE, message="no two")

    caplog.set_level(logging.INFO)
    reward = RewardFunction(score, name="counted", version="7")
    async with serving(reward, MEASURED) as address:
        await connect([address]).score(make_samples(4))
        async with grpc.aio.insecure_channel(address) as channel:
            twice = [reward_pb2.Sample(id="a")] * 2
            with pytest.raises(grpc.aio.AioRpcError):
                await reward_pb2_grpc.RewardServiceStub(channel).Score(reward_pb2.ScoreRequest(samples=twice))
        found = await asyncio.to_thread(scraped, caplog)

    assert found['trireme_reward_info{name="counted",version="7"}'] == 1
    assert found['trireme_reward_calls_total{code="OK"}'] == 1
    assert found['trireme_reward_calls_total{code="INVALID_ARGUMENT"}'] == 1
    assert found['trireme_reward_samples_total{outcome="reward",version=""}'] == 3
    assert found['trireme_reward_samples_total{outcome="invalid_sample",version=""}'] == 1
    assert found["trireme_reward_call_duration_seconds_count"] == 2
    assert found["trireme_reward_call_samples_sum"] == 6
    assert found["trireme_reward_batch_samples_sum"] == 4
    assert found["process_resident_memory_bytes"] > 0
    assert "1 of 4 samples failed, such as '0-2/0': no two" in caplog.text
    assert (
        "2 samples in 0.0" in caplog.text and "INVALID_ARGUMENT: sample id 'a' is given more than once" in caplog.text
    )


async def test_what_the_parts_of_a_reward_count_themselves_is_in_the_metrics(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = {"criteria": [{"name": "truth", "meaning": "It is true."}]}
    async with fake_endpoint(lambda body: {"truth": 5}) as endpoint:
        judge = endpoint.config(input_price=10.0).model_dump(mode="json")
        judged = RewardSource(name="judge_pointwise", label="judged", options={"judge": judge, **options})
        members = (judged, RewardSource(name="exact_match"))
        both = RewardServiceConfig(label="both", ensemble=EnsembleConfig(members=members))
        async with serving(build_scorer([both], MEASURED), MEASURED) as address:
            for _ in range(2):
                await connect([address]).score([make_sample()])
            found = await asyncio.to_thread(scraped, caplog)
    own = {name: found[f'trireme_reward_own_total{{name="both/judged/{name}"}}'] for name in ("requests", "cache_hits")}
    assert own == {"requests": 1, "cache_hits": 1}
    assert found['trireme_reward_own_total{name="both/judged/paid"}'] == pytest.approx(0.001)


async def test_metrics_show_what_is_under_way_and_what_waits(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    go, started = asyncio.Event(), asyncio.Event()

    async def score(samples: list[RewardSample]) -> list[float]:
        started.set()
        await go.wait()
        return [0.0] * len(samples)

    config = MEASURED.model_copy(update={"max_batch_samples": 2, "num_threads": 1})
    async with serving(RewardFunction(score, batched=True), config) as address:
        scoring = asyncio.create_task(connect([address]).score(make_samples(3)))
        await started.wait()
        found = await asyncio.to_thread(scraped, caplog)
        go.set()
        await scoring
        after = await asyncio.to_thread(scraped, caplog)

    names = ("calls_in_flight", "pending_samples", "waiting_samples")
    assert [found[f"trireme_reward_{name}"] for name in names] == [1, 3, 1]
    assert [after[f"trireme_reward_{name}"] for name in names] == [0, 0, 0]


def test_an_exporter_that_is_not_installed_is_said_to_be_missing() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "reward_server", "exact_match", "--port", "0"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OTEL_TRACES_EXPORTER": "nonsense"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "asks for the exporter 'nonsense', which is not installed" in ended.stderr


@pytest.mark.parametrize(("asked", "number"), [("", 0), ("none", 0), ("console", 1), ("console, console", 2)])
def test_exporters_are_named_as_opentelemetry_has_them_named(asked: str, number: int) -> None:
    program = (
        "from services.transport.tracing import set_up_tracing, span\n"
        "set_up_tracing('test')\n"
        "with span('work'):\n    pass\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OTEL_TRACES_EXPORTER": asked},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ended.stdout.count('"name": "work"') == number


def traced_server(reward: Path) -> AbstractContextManager[tuple["subprocess.Popen[str]", str]]:
    """A server that writes its spans to standard output and its log, as JSON, to standard error."""
    command = [sys.executable, "-m", "reward_server", f"{reward}:score", "--port", "0"]
    return listening(
        [*command, "--log-format", "json", "--log-level", "debug"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OTEL_TRACES_EXPORTER": "console"},
        stderr=subprocess.PIPE,
    )  # fmt: skip


async def test_one_trace_goes_from_the_caller_to_the_span_and_the_log_of_the_server(
    connect: Connect, tmp_path: Path
) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text("def score(sample):\n    return 1.0 / len(sample.completion)\n")
    with traced_server(reward) as (server, address):
        with span("a prompt") as caller:
            await connect([address]).score([make_sample(completion=""), make_sample(1)])
            ids = ids_in()
        server.send_signal(signal.SIGTERM)
        spans, log = await asyncio.to_thread(server.communicate, timeout=30.0)

    served = json.loads(spans)
    lines = [line for line in map(json.loads, log.splitlines()) if line["logger"] == "reward_server.observation"]
    assert served["name"] == "trireme.reward.v1.RewardService/Score"
    assert served["context"]["trace_id"] == "0x" + ids["trace_id"]
    assert served["parent_id"] == "0x" + ids["span_id"]
    assert {line["trace_id"] for line in lines} == {ids["trace_id"]}
    assert {line["span_id"] for line in lines} == {served["context"]["span_id"].removeprefix("0x")}
    assert [line["level"] for line in lines] == ["DEBUG", "WARNING"]
    assert (lines[0]["code"], lines[0]["num_samples"]) == ("OK", 2)
    assert re.fullmatch("[0-9a-f]{32}-0", lines[0]["request_id"])
    raised = next(line for line in map(json.loads, log.splitlines()) if "error" in line)
    assert "ZeroDivisionError" in raised["error"]
    assert "request_id" not in raised  # A batch may be of many calls.
    assert caller.get_span_context().is_valid


def test_a_line_in_json_is_one_line_whatever_it_says() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "two\nlines of %s", ("\ud800 \u2028",), None)
    token = CURRENT_CALL.set(lambda: {"request_id": "r"})
    text = JsonFormatter().format(record)
    CURRENT_CALL.reset(token)
    assert "\n" not in text and text.isascii()
    line = json.loads(text)
    assert (line["message"], line["request_id"], line["level"]) == ("two\nlines of \ud800 \u2028", "r", "INFO")
