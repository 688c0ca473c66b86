"""The files in `examples/` do what they say, on a tiny model; that each is read is in `tests/cli/`."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import yaml
from transformers import AutoModelForCausalLM

from reward_server.assembly import build_scorer
from reward_server.config import RewardServerConfig, RewardServiceConfig
from services.cli.arguments import load_config
from services.contracts.errors import UserError
from services.contracts.records import Reward, RewardSample
from services.control.adaptation import AdaptConfig
from services.control.config import PreferenceRunConfig, RewardModelRunConfig, RunConfig, SupervisedRunConfig
from services.control.pipeline_config import PipelineConfig, resolve
from tests.end_to_end.command import TIMEOUT_S, json_lines, started, trireme
from tests.tiny import write_tiny_model

ROOT = Path(__file__).parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def test_the_example_of_a_model_that_learns_beside_a_run_is_valid() -> None:
    adapt = load_config(AdaptConfig, [str(ROOT / "examples/adapt/adapt.yaml")], prog="", summary="")
    trainer = load_config(RewardModelRunConfig, [str(ROOT / adapt.run.trainer)], prog="", summary="")
    assert trainer.learner.objective == "bradley_terry"


def test_the_example_of_preferences_is_valid() -> None:
    config = load_config(PreferenceRunConfig, [str(ROOT / "examples/preferences.yaml")], prog="", summary="")
    assert (config.learner.algorithm, config.data.template) == ("dpo", "chat")


def test_the_warm_up_is_a_valid_configuration() -> None:
    config = load_config(SupervisedRunConfig, [str(ROOT / "examples/quickstart/sft.yaml")], prog="", summary="")
    assert config.data.response_field == "demonstration"


async def test_the_reward_with_a_mistake_pays_for_sums_whose_carry_was_forgotten() -> None:
    reward = RewardServiceConfig(name=f"{ROOT}/examples/rewards/column_by_column.py:score")
    scorer = build_scorer([reward], RewardServerConfig())
    written = {"031": 1.0, "141": 1 / 3, "03": 2 / 3, "": 0.0}
    samples = [RewardSample(id=text, prompt="47+94=", completion=text) for text in written]
    assert await scorer.score(samples) == [Reward(value=value, components=ANY) for value in written.values()]


def test_the_recipe_of_forgetting_gates_the_task_that_is_not_trained_on() -> None:
    recipe = load_config(PipelineConfig, [str(ROOT / "examples/forgetting/recipe.yaml")], prog="", summary="")
    stages = resolve(recipe)
    assert {stage.command_name for stage in stages} == {"sft", "train", "average", "evaluate"}
    for config in (stage.config for stage in stages if isinstance(stage.config, RunConfig)):
        (suite,) = config.evaluate.suites
        assert suite.gate is not None and suite.name == "subtraction"
        assert suite.prompts not in (None, config.data.prompts, config.evaluate.prompts)


def test_the_second_task_of_the_example_of_forgetting_is_to_subtract() -> None:
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "examples/forgetting/prepare.py")
    assert spec is not None and spec.loader is not None
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    rows = prepare.subtractions(seed=0)
    assert len(rows) == len({row["question"] for row in rows}) == 5050
    for row in rows:
        first, second = row["question"].removesuffix("=").split("-")
        assert int(first) - int(second) == int(row["answer"]) and len(row["answer"]) == 3
    assert rows != prepare.subtractions(seed=1)


async def test_the_code_example_scores_the_problems_that_it_shows() -> None:
    text = (ROOT / "examples/code.yaml").read_text()
    add, total = [json.loads(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#     {")]
    config = RunConfig(**yaml.safe_load(text)).reward
    scorer = build_scorer(config.services, config.server)
    programs = [
        (add, "def add(a, b):\n    return a + b"),
        (add, "def add(a, b):\n    return a - b"),
        (total, "print(sum(map(int, input().split())))"),
    ]
    samples = [
        RewardSample(id=str(n), completion=f"```python\n{program}\n```", reference=problem["tests"])
        for n, (problem, program) in enumerate(programs)
    ]
    try:
        await scorer.start()
    except UserError as error:
        pytest.skip(str(error))
    outcomes = await scorer.score(samples)
    await scorer.close()

    assert [outcome.value for outcome in outcomes if isinstance(outcome, Reward)] == [1.0, 0.0, 1.0]


@pytest.mark.skipif(not GSM8K.is_dir(), reason="needs the GSM8K files in ../shared/data/gsm8k")
def test_gsm8k_is_loaded_templated_sampled_scored_and_trained_on(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", max_position_embeddings=2048)
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    flags = {
        "run.dir": tmp_path / "run",
        "model.path": model,
        "model.dtype": "float32",
        "data.prompts": GSM8K / "train.jsonl",
        "evaluate.prompts": GSM8K / "test.jsonl",
        "evaluate.limit": 4,
        "rollout.num_workers": 1,
        "rollout.samples_per_prompt": 2,
        "rollout.max_completion_tokens": 16,
        "rollout.kv_cache_gib": 0.5,
        "train.num_steps": 2,
        "train.prompts_per_step": 4,
        "cluster.cpus_per_learner_rank": 1,
    }
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    finished = trireme("train", str(ROOT / "examples/gsm8k.yaml"), *arguments, cwd=tmp_path)
    assert finished.code == 0, finished.output
    metrics = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert all("reward/math_answer" in row for row in metrics)
    sample = json_lines(tmp_path / "run" / "samples.jsonl")[0]
    assert str(sample["prompt_text"]).startswith("system: Reason step by step")
    assert [turn["role"] for turn in sample["prompt"]] == ["system", "user"]  # type: ignore[attr-defined] # JSON
    assert "####" in str(sample["reference"])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["subset"] == "main"


def test_the_example_of_preferences_learns_them_on_a_tiny_model(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    rows = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "abc"[n % 3] * (n % 4 + 1)} for n in range(60)]
    of_no_use = rows[0] | {"rejected": "1"}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, of_no_use]))
    flags = {
        "run.dir": tmp_path / "run",
        "model.path": model,
        "model.dtype": "float32",
        "data.examples": tmp_path / "pairs.jsonl",
        "data.validation_share": 0.2,
        "learner.lr": 1e-3,
        "learner.warmup_steps": 2,
        "train.num_steps": 100,  # Enough that it is interrupted before the last.
        "train.prompts_per_step": 4,
        "evaluate.every": 50,
        "cluster.cpus_per_learner_rank": 1,
    }
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    finished = trireme("prefer", str(ROOT / "examples/preferences.yaml"), *arguments, cwd=tmp_path)
    assert finished.code == 0, finished.output
    assert "computing the reference logprobs of 60 rows" in finished.output
    rows_of_run = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows_of_run[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows"] == {"learnt": 60 - summary["rows"]["validation"], "validation": ANY, "same": 1}
    assert summary["accuracy_after"] > 0.9
    looks = [float(str(row["validation/loss"])) for row in rows_of_run if "validation/loss" in row]
    assert summary["validation"]["loss"] == pytest.approx(min(looks), rel=1e-4)
    assert "Implicit rewards" in (tmp_path / "run" / "report.html").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")

    arguments[arguments.index(str(tmp_path / "run"))] = str(tmp_path / "again")
    command = ["prefer", str(ROOT / "examples/preferences.yaml"), *arguments]
    metrics = tmp_path / "again" / "metrics.jsonl"
    with started(*command, cwd=tmp_path) as running:
        running.wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, "two steps")
        running.interrupt()
        stopped = running.finish()
    assert stopped.code == 130 and "go on with: trireme prefer" in stopped.output, stopped.output
    assert not (tmp_path / "again" / "export").exists()
    resumed = trireme(*command, "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.output
    assert "computing the reference logprobs" not in resumed.output
    weights = [(tmp_path / run / "export" / "model.safetensors").read_bytes() for run in ("run", "again")]
    assert weights[0] == weights[1]


def test_the_quickstart_in_small_warms_up_and_is_evaluated(tmp_path: Path) -> None:
    prepared = subprocess.run(
        [sys.executable, str(ROOT / "examples/quickstart/prepare.py"), "runs/quickstart"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert prepared.returncode == 0, prepared.stderr
    short = ["--train.num_steps", "30", "--learner.warmup_steps", "5", "--cluster.cpus_per_learner_rank", "1"]
    warm_up = trireme("sft", str(ROOT / "examples/quickstart/sft.yaml"), *short, cwd=tmp_path)
    assert warm_up.code == 0, warm_up.output
    losses = [float(str(row["loss"])) for row in json_lines(tmp_path / "runs/quickstart/sft/metrics.jsonl")]
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2
    flags = ["--evaluate.limit", "20", "--evaluate.num_samples", "4", "--evaluate.ks", "1,4"]
    evaluated = trireme("evaluate", str(ROOT / "examples/quickstart/ppo.yaml"), *flags, cwd=tmp_path)
    assert evaluated.code == 0, evaluated.output
    measured = json.loads(evaluated.output.splitlines()[-1])
    assert measured["prompts"] == 20
    assert 0 <= measured["pass@1"] <= measured["pass@4"] <= 1
