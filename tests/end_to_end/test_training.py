"""The whole loop on real parts: Ray, vLLM, gRPC and DeepSpeed, started by the command that a user types."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.control.ledger_events import Resumed, RunEnded, parse_event
from services.control.verification import verify_run
from tests.end_to_end.command import TIMEOUT_S, json_lines, started, trireme, write_config
from tests.end_to_end.faults import events, steps_done, violations, weights
from tests.end_to_end.tiny_run import run_sections
from tests.simulation.filtering import check_filtering

BEGINS_WITH_A_DIGIT = """def score(sample):
    return 1.0 if sample.completion[:1].isdigit() else 0.0
"""
TEN_LINES = f"""from reward_server import serve


{BEGINS_WITH_A_DIGIT}

serve(score, port=0)
"""

SUITE = {
    "name": "sums",
    "data": {
        "prompts": "sums.jsonl",
        "reference_field": "answer",
        "prompt_format": "what is {question}",
        "template": "plain",
    },
    "reward": {"services": [{"name": "exact_match"}]},
    "gate": {"breach": "possible", "action": "warn"},
}


def dapo_sections(task: Path) -> dict[str, dict[str, Any]]:
    """DAPO whole: flat groups are replaced, completions near their limit lose reward, and the upper clip is higher."""
    return run_sections(task, train={"dynamic_sampling": True}) | {
        "learner": {"algorithm": "dapo", "lr": 3e-3, "num_minibatches": 2, "overlong_tokens": 4}
    }


@pytest.fixture(scope="module")
def undisturbed(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with one worker; the runs that follow must give the same weights."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "reward.py").write_text(BEGINS_WITH_A_DIGIT)
    sections = dapo_sections(task) | {"reward": {"services": [{"name": f"{folder / 'reward.py'}:score"}]}}
    finished = trireme("train", write_config(folder / "run.yaml", **sections), cwd=folder)
    assert finished.code == 0, finished.output
    return folder / "run"


def test_a_run_writes_all_that_it_promises(undisturbed: Path, task: Path) -> None:
    metrics = json_lines(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    ended = [event["prompt"] for event in json_lines(undisturbed / "events.jsonl") if event["event"] == "trained"]
    assert len(ended) == len(set(ended)) == 24
    for name in ("config.yaml", "samples.jsonl", "summary.json", "curves.png", "report.html"):
        assert (undisturbed / name).stat().st_size > 0
    assert sorted(path.name for path in (undisturbed / "checkpoints").iterdir()) == ["step_4", "step_6"]
    assert weights(undisturbed) != (task / "model" / "model.safetensors").read_bytes()


def test_three_workers_and_a_reward_by_address_change_no_weight(undisturbed: Path, task: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(TEN_LINES)
    with subprocess.Popen(
        [sys.executable, "reward.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().rsplit(" ", 1)[1].strip()
            sections = dapo_sections(task) | {"reward": {"addresses": [address]}}
            sections["rollout"]["num_workers"] = 3
            finished = trireme("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path)
        finally:
            server.terminate()
            server.wait(timeout=20)
    assert finished.code == 0, finished.output
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_a_run_of_one_rank_goes_on_with_two_as_it_would_have_with_one(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "checkpoints" / "step_6")  # As if it had been killed just before.
    two_ranks = ("--learner.num_ranks", "2", "--learner.zero_stage", "2")
    resumed = trireme("train", str(undisturbed.parent / "run.yaml"), "--resume", *two_ranks, cwd=tmp_path)
    assert resumed.code == 0, resumed.output
    assert [event.step for event in events(run, Resumed)] == [4]
    assert violations(run) == {}
    for step, ranks in (("step_4", {"rank_0.pt"}), ("step_6", {"rank_0.pt", "rank_1.pt"})):
        assert {path.name for path in (run / "checkpoints" / step / "learner" / "policy").iterdir()} == ranks
    straight, metrics = json_lines(undisturbed / "metrics.jsonl"), json_lines(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[:4] == straight[:4]
    # The weights that step 5 samples from are those of the checkpoint to the bit, so its completions are the same.
    for name in ("reward/mean", "reward/overlong", "completion_tokens/mean", "filtered/share", "learner/tokens"):
        assert metrics[4][name] == straight[4][name]
    # Two ranks add in another order. The second of a step's two updates sees what the first made of AdamW's moments.
    for name in ("policy_loss", "entropy", "kl/old"):
        assert float(str(metrics[4][name])) == pytest.approx(float(str(straight[4][name])), rel=0, abs=1e-5)


def test_dynamic_sampling_put_flat_groups_aside_and_length_cost_reward(undisturbed: Path) -> None:
    ledger = [parse_event(line) for line in (undisturbed / "events.jsonl").read_bytes().splitlines()]
    assert check_filtering(ledger, most=12) == []
    report = verify_run(undisturbed)
    assert report.violations == {} and report.totals.filtered > 0
    metrics = json_lines(undisturbed / "metrics.jsonl")
    assert max(float(str(row["filtered/share"])) for row in metrics) > 0
    assert min(float(str(row["reward/overlong"])) for row in metrics) < 0


def test_two_workers_and_two_ranks_agree_with_the_learner_and_export_what_they_trained(
    task: Path, tmp_path: Path
) -> None:
    base = run_sections(task)
    (tmp_path / "sums.jsonl").write_text("".join((task / "rows.jsonl").read_text().splitlines(keepends=True)[:5]))
    sections = run_sections(
        task,
        rollout=base["rollout"] | {"num_workers": 2},
        learner=base["learner"] | {"num_ranks": 2, "zero_stage": 2, "sequence_parallel": 2, "kl_coefficient": 0.01},
        train=base["train"] | {"num_steps": 3},
        evaluate={"prompts": str(task / "rows.jsonl"), "num_samples": 2, "ks": [1, 2], "suites": [SUITE]},
        demonstrations={
            "prompts": str(task / "rows.jsonl"),
            "prompt_field": "question",
            "response_field": "answer",
            "template": "plain",
            "rows_per_step": 5,
            "schedule": "linear",
            "schedule_steps": 2,
        },
    )
    finished = trireme("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path)
    assert finished.code == 0, finished.output
    assert "held-out accuracy" in finished.output
    main, suite = json.loads((tmp_path / "run" / "summary.json").read_text())["evaluations"]
    assert (main["name"], main["verdict"], suite["name"], suite["num_prompts"]) == (
        "evaluation",
        "not_gated",
        "sums",
        5,
    )
    # A reward of its own: the tiny model hardly has a whole sum right, of which five prompts are no proof.
    assert (suite["before"], suite["verdict"]) == (0.0, "breach")
    assert (tmp_path / "run" / "suite_sums_server.log").exists()
    assert "regression after training: sums: accuracy 0 before" in finished.output
    metrics = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert all(float(str(row["sampler_gap/mean"])) <= 1e-5 for row in metrics)
    assert all(float(str(row["sync/canary_error"])) <= 1e-5 for row in metrics)
    assert all(float(str(row["reward_service/calls"])) >= 1 for row in metrics)
    assert [row["demonstrations/coefficient"] for row in metrics] == [1.0, 0.5, 0.0]
    assert [float(str(row["demonstrations/tokens"])) > 5 for row in metrics] == [True, True, False]
    assert "demonstrations/loss" in metrics[1] and "demonstrations/loss" not in metrics[2]
    workers = {event["worker"] for event in json_lines(tmp_path / "run" / "events.jsonl") if event["event"] == "synced"}
    assert workers == {0, 1}
    check = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.same_logprobs", str(tmp_path / "run" / "export")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_a_reward_that_dies_stops_the_run_with_a_checkpoint(task: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(TEN_LINES)
    server = subprocess.Popen([sys.executable, "reward.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().rsplit(" ", 1)[1].strip()
        base = run_sections(task)
        sections = run_sections(task, train=base["train"] | {"num_steps": 500, "checkpoint_every": 0})
        sections["learner"] = {"algorithm": "remax", "lr": 3e-3}
        sections["reward"] = {"addresses": [address], "unavailable_budget_s": 2.0}
        config = write_config(tmp_path / "run.yaml", **sections)
        with started("train", config, cwd=tmp_path) as running:
            running.wait_until(lambda: steps_done(tmp_path / "run") >= 2, "two steps")
            server.kill()
            finished = running.finish()
    finally:
        server.kill()
        server.wait(timeout=20)
    assert finished.code == 1, finished.output
    assert address in finished.output
    assert "go on with: trireme train" in finished.output
    assert list((tmp_path / "run" / "checkpoints").glob("step_*/COMMIT"))
    assert [ended.error for ended in events(tmp_path / "run", RunEnded)] == ["RewardUnavailable"]
    assert violations(tmp_path / "run") == {}
    metrics = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert all(0 <= float(str(row["reward_of_greedy"])) <= 1 for row in metrics)
