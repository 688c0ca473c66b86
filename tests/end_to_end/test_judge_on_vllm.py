"""A judge that vLLM serves: the protocol, structured output, the cache and concurrency against the real endpoint.

The model is random, so its verdicts mean nothing; that they arrive in the form asked for is vLLM's and ours.
"""

import asyncio
import json
import os
import string
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from reward_server.assembly import build_scorer
from reward_server.config import RewardServerConfig, RewardServiceConfig
from reward_server.judges.config import JudgeConfig
from reward_server.judges.faults import JudgeFault
from reward_server.judges.judge import open_judge
from reward_server.judges.question import Key, Question
from rollout_workers.config import RolloutConfig, engine_environment
from services.contracts.errors import UserError
from services.contracts.records import FailureCode, Reward
from services.control.pair_labels import LabelConfig, label
from services.transport.ports import free_port
from services.transport.reward_client import RewardClient
from tests.end_to_end.command import json_lines, trireme, write_config
from tests.end_to_end.tiny_run import run_sections
from tests.reward_server.serving import make_sample, serving
from tests.tiny import write_tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "judged.yaml"
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
KEY = "a-key-for-this-test"
START_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own server, of a tiny random model that can write JSON."""
    folder = tmp_path_factory.mktemp("vllm")
    model = write_tiny_model(folder / "model", characters=string.printable[:96], max_position_embeddings=8192)
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "8192", "--max-num-seqs", "16"]
    command += ["--structured-outputs-config", json.dumps({"disable_any_whitespace": True, "backend": "xgrammar"})]
    environment = os.environ | engine_environment(RolloutConfig(), cuda=False)
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            engines = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            process.wait(30)
            _, left = psutil.wait_procs(engines, timeout=10)
            for engine in left:
                engine.kill()


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"vLLM was not ready within {START_TIMEOUT_S} s:\n{log.read_text()[-3000:]}")


@pytest.fixture
def config(base_url: str, tmp_path: Path) -> JudgeConfig:
    (tmp_path / "key").write_text(KEY)
    return JudgeConfig(
        base_url=base_url,
        model="tiny",
        api_key_file=tmp_path / "key",
        explain=False,  # A random model's free text has no end.
        cache=tmp_path / "cache.sqlite",
        input_price=1.0,
        output_price=1.0,
    )


def question(text: str) -> Question:
    return Question(
        task="Grade the text.", texts={"TEXT": text}, verdict={"grade": Key(meaning="it", values=(1, 2, 3))}
    )


def with_settings(config: JudgeConfig, **settings: object) -> JudgeConfig:
    return JudgeConfig.model_validate(config.model_dump() | settings)


async def test_many_verdicts_arrive_in_the_form_asked_for_and_are_kept(config: JudgeConfig) -> None:
    questions = [question(f"text {number}") for number in range(24)]
    async with open_judge(config) as judge:
        verdicts = await asyncio.gather(*map(judge.ask, questions))
        assert {frozenset(verdict) for verdict in verdicts} == {frozenset(["grade"])}
        counts = judge.counts
        assert (counts.questions, counts.cache_hits, judge.endpoint.num_requests) == (24, 0, 24)
        assert counts.input_tokens > 24 * 100
        assert counts.paid == pytest.approx((counts.input_tokens + counts.output_tokens) / 1e6)
    async with open_judge(config) as judge:
        assert await asyncio.gather(*map(judge.ask, questions)) == verdicts
        assert judge.endpoint.num_requests == 0


@pytest.mark.parametrize(
    ("settings", "text", "code", "words"),
    [
        ({"max_reply_tokens": 3}, "short", FailureCode.INTERNAL, "cut at 3 tokens"),
        ({"output": "text", "max_reply_tokens": 40}, "short", FailureCode.INTERNAL, "cut at 40 tokens"),
        ({}, "long " * 4000, FailureCode.INVALID_SAMPLE, "HTTP status 400"),
        ({"budget": 1e-4}, "short", FailureCode.UNAVAILABLE, "budget"),
    ],
)
async def test_what_the_endpoint_cannot_answer_is_a_typed_failure(
    config: JudgeConfig, settings: dict[str, object], text: str, code: FailureCode, words: str
) -> None:
    async with open_judge(with_settings(config, **settings)) as judge:
        with pytest.raises(JudgeFault, match=words) as caught:
            await judge.ask(question(text))
    assert caught.value.failure.code is code and not caught.value.failure.retryable


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"api_key_file": None}, "HTTP status 401"), ({"model": "large"}, "no model 'large'; it has tiny")],
)
async def test_a_wrong_key_or_model_is_told_at_once(
    config: JudgeConfig, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        async with open_judge(with_settings(config, **settings)):
            pass


async def test_both_rewards_are_served_over_grpc(config: JudgeConfig) -> None:
    judge = config.model_dump(mode="json")
    criteria = [{"name": "truth", "meaning": "It is true."}]
    services = [
        RewardServiceConfig(name="judge_pointwise", options={"judge": judge, "criteria": criteria}),
        RewardServiceConfig(name="judge_pairwise", options={"judge": judge}),
    ]
    server = RewardServerConfig(port=0, drain_s=0.0)
    async with serving(build_scorer(services, server), server) as address:
        client = RewardClient([address])
        rewards = await client.score([make_sample(number, completion=f"text {number}") for number in range(8)])
        await client.close()
    for reward in rewards:
        assert isinstance(reward, Reward)
        assert reward.components["judge_pointwise/truth"] in (0.0, 0.25, 0.5, 0.75, 1.0)
        assert reward.components["judge_pairwise"] in (0.0, 0.5, 1.0)


async def test_what_a_policy_samples_is_labelled(config: JudgeConfig, task: Path, tmp_path: Path) -> None:
    sections = run_sections(task, run={"dir": str(tmp_path / "samples")}, data={"limit": 6})
    sampled = trireme("sample", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path)
    assert sampled.code == 0, sampled.output
    rows = json_lines(tmp_path / "samples" / "completions.jsonl")
    assert [(row["prompt"], len(row["completions"])) for row in rows] == [(f"{n}+{n + 1}=", 4) for n in range(6)]

    labelling = LabelConfig.model_validate(
        {
            "run": {"dir": tmp_path / "labels"},
            "candidates": {"rows": str(tmp_path / "samples/completions.jsonl"), "completions_field": "completions"},
            "judge": config.model_dump(),
        }
    )
    found = await label(labelling, tell=print)
    assert found.statistics.agreement.total == 24 and found.num_failed == 0
    assert len(json_lines(tmp_path / "labels" / "preferences.jsonl")) == found.statistics.decided.count


def test_a_policy_is_trained_by_what_a_judge_says(config: JudgeConfig, task: Path, tmp_path: Path) -> None:
    reward = yaml.safe_load(EXAMPLE.read_text())["reward"]
    reward["services"][0]["options"]["judge"] = config.model_dump(mode="json", exclude_unset=True)
    train = {"num_steps": 2, "checkpoint_every": 0}
    kept = {"samples_per_step": 16}
    sections = run_sections(task, run={"dir": str(tmp_path / "run")}, reward=reward, train=train, metrics=kept)
    sections["learner"] = {"algorithm": "grpo", "lr": 1e-3}
    trained = trireme("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path)
    assert trained.code == 0, trained.output

    samples = json_lines(tmp_path / "run" / "samples.jsonl")
    marks = [
        [sample["components"][f"judge_pointwise/{name}"] for name in ("helpful", "truthful")] for sample in samples
    ]
    assert len(samples) == 2 * 4 * 4
    assert {mark for both in marks for mark in both} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert [sample["reward"] for sample in samples] == pytest.approx([(2 * h + t) / 3 for h, t in marks])
    assert "questions" in (tmp_path / "run" / "reward_server.log").read_text()
