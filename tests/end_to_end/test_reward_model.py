"""`trireme reward-model` as a user runs it, its export behind the reward server, and what it refuses."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from reward_server.reward_models.loaded import LoadedModel
from reward_server.reward_models.options import RewardModelOptions
from services.cli.__main__ import main
from services.contracts.records import Reward, RewardSample
from services.contracts.reward_model import read_card
from tests.end_to_end.command import json_lines, trireme, write_config
from tests.end_to_end.tiny_run import ONE_THREAD, run_sections

NUM_STEPS = 12


def write_pairs(path: Path, *, num_rows: int, seed: int) -> str:
    """Sums with an answer in digits, which is better, and one in letters."""
    draw = random.Random(seed)

    def answer(characters: str) -> str:
        return "".join(draw.choices(characters, k=draw.randint(2, 6)))

    rows = [
        {"prompt": f"{number}+{draw.randint(1, 9)}=", "chosen": answer("0123456789"), "rejected": answer("abcdefgh")}
        for number in range(num_rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sections(task: Path, folder: Path, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    base: dict[str, dict[str, Any]] = {
        "run": {"dir": "run"},
        "model": {"path": str(task / "model"), "dtype": "float32"},
        "data": {
            "examples": write_pairs(folder / "pairs.jsonl", num_rows=60, seed=0),
            "validation_share": 0.2,
            "max_tokens": 32,
        },
        "learner": {"objective": "bradley_terry", "lr": 3e-3, "dropout": 0.1},
        "train": {"num_steps": NUM_STEPS, "prompts_per_step": 8, "checkpoint_every": 2},
        "evaluate": {"examples": write_pairs(folder / "held_out.jsonl", num_rows=40, seed=1), "every": 3},
        "cluster": ONE_THREAD,
    }
    return {name: base.get(name, {}) | changes.get(name, {}) for name in {**base, **changes}}


@pytest.fixture(scope="module")
def trained(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward_model")
    finished = trireme("reward-model", write_config(folder / "run.yaml", **sections(task, folder)), cwd=folder)
    assert finished.code == 0, finished.output
    assert "accuracy (95% interval)" in finished.output
    return folder / "run"


def test_a_run_learns_the_preference_and_says_how_well(trained: Path) -> None:
    assert [row["step"] for row in json_lines(trained / "metrics.jsonl")] == list(range(1, NUM_STEPS + 1))
    summary = json.loads((trained / "summary.json").read_text())
    evaluation = summary["evaluation"]
    assert evaluation["num_rows"] == 40
    assert evaluation["accuracy"] > 0.9
    assert evaluation["interval_95"][0] > max(evaluation["baselines"].values())
    assert 0.3 < evaluation["baselines"]["longer_answer"] < 0.7
    assert summary["rows"]["learnt"] + summary["rows"]["validation"] == 60
    split = json.loads((trained / "split.json").read_text())
    assert len(split["validation_rows"]) == summary["rows"]["validation"] > 0
    assert "longer answer" in (trained / "report.html").read_text()


def test_the_weights_that_are_kept_are_those_of_the_lowest_validation_loss(trained: Path) -> None:
    looks = {
        row["step"]: row["validation/loss"] for row in json_lines(trained / "metrics.jsonl") if "validation/loss" in row
    }
    assert list(looks) == [3, 6, 9, 12]
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["best_step"] == min(looks, key=lambda step: looks[step])
    assert summary["validation_loss"] == pytest.approx(min(looks.values()))


def test_the_export_is_served_with_normalised_scores(trained: Path) -> None:
    card = read_card(trained / "export")
    assert card.head == "outcome"
    assert len(card.version) == 12
    # Loading checks the canary that the trainer wrote.
    served = LoadedModel(trained / "export", RewardModelOptions(path=trained / "export", canary_tolerance=1e-3))
    rows = [json.loads(line) for line in (trained.parent / "pairs.jsonl").read_text().splitlines()]
    samples = [
        RewardSample(id=f"{number}/{side}", prompt=row["prompt"], completion=row[side])
        for number, row in enumerate(rows)
        for side in ("chosen", "rejected")
    ]
    rewards = served.score(samples)
    values = [reward.value for reward in rewards if isinstance(reward, Reward)]
    assert len(values) == len(samples)
    assert abs(sum(values) / len(values)) < 0.2
    assert sum(better > worse for better, worse in zip(values[::2], values[1::2], strict=True)) > 50
    assert {reward.version for reward in rewards if isinstance(reward, Reward)} == {card.version}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learner.objective", "bradley_terri"], "'bradley_terri' does not exist; choose one of bradley_terry"),
        (["--data.max_tokens", "9999"], "data.max_tokens is 9999, and"),
        (["--data.rejected_field", "worse"], "pairs.jsonl, row 0: no column 'worse'"),
        (["--evaluate.examples", "nowhere.jsonl"], "data file 'nowhere.jsonl' does not exist"),
        (["--learner.objective", "outcome"], "row 0: no column 'label'"),
        (["--data.template", "chat"], "has no chat template"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    changes = {"run": {"dir": str(tmp_path / "run")}}
    config = write_config(tmp_path / "run.yaml", **sections(task, tmp_path, **changes))
    assert main(["reward-model", config, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ppo_raises_its_score_on_held_out_prompts_while_the_kl_stays_bounded(
    trained: Path, task: Path, tmp_path: Path
) -> None:
    config = run_sections(
        task,
        data={"prompts": str(trained.parent / "pairs.jsonl"), "prompt_field": "prompt", "reference_field": None},
        reward={"services": [{"name": "reward_model", "options": {"path": str(trained / "export"), "num_threads": 1}}]},
        learner={"lr": 1e-3, "kl_coefficient": 0.1, "kl_target": 4.0, "kl_horizon": 100},
        train={"num_steps": 20, "prompts_per_step": 8, "checkpoint_every": 0},
        evaluate={"prompts": str(trained.parent / "held_out.jsonl"), "threshold": 0.0},
    )
    finished = trireme("train", write_config(tmp_path / "run.yaml", **config), cwd=tmp_path)
    assert finished.code == 0, finished.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out_reward_after"] > summary["held_out_reward_before"] + 0.3
    rows = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert max(float(str(row["kl/completion"])) for row in rows) < 10.0
