"""The example reward model on real human preferences: split, training, and what it is worth beside going by length."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.arguments import load_config
from services.control.config import PreferenceRunConfig, RewardModelRunConfig, RunConfig, SupervisedRunConfig
from tests.end_to_end.command import TIMEOUT_S, trireme

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "reward_model"
PAIRS = ROOT.parent / "shared" / "data" / "hh_rlhf" / "harmless-base-test.jsonl.gz"
needs_pairs = pytest.mark.skipif(not PAIRS.is_file(), reason="needs the hh-rlhf pairs in ../shared/data/hh_rlhf")


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("train", RewardModelRunConfig),
        ("policy_sft", SupervisedRunConfig),
        ("policy_ppo", RunConfig),
        ("policy_dpo", PreferenceRunConfig),
    ],
)
def test_an_example_is_a_valid_configuration(
    name: str, root: type[RewardModelRunConfig | SupervisedRunConfig | RunConfig | PreferenceRunConfig]
) -> None:
    config = load_config(root, [str(EXAMPLE / f"{name}.yaml")], prog="", summary="")
    assert config.run.dir.parts[:2] == ("runs", "preferences")


@needs_pairs
def test_a_tiny_model_from_scratch_beats_its_baselines_on_held_out_human_preferences(tmp_path: Path) -> None:
    prepared = subprocess.run(
        [sys.executable, str(EXAMPLE / "prepare.py"), str(PAIRS), "runs/preferences"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert prepared.returncode == 0, prepared.stderr
    folder = tmp_path / "runs/preferences"
    questions = {
        name: {json.loads(line)["chosen"].split("\n\nAssistant:")[0] for line in (folder / name).open()}
        for name in ("train.jsonl", "held_out.jsonl")
    }
    assert not questions["train.jsonl"] & questions["held_out.jsonl"]
    split = json.loads((folder / "split.json").read_text())
    assert sorted(split["train"] + split["held_out"]) == list(range(2312))
    pairs = gzip.decompress(PAIRS.read_bytes()).splitlines()
    assert json.loads((folder / "held_out.jsonl").open().readline()) == json.loads(pairs[split["held_out"][0]])

    # A third of the example's steps: enough to be better than no model, if not as good as docs/reward_models.md says.
    short = ["--train.num_steps", "40", "--cluster.cpus_per_learner_rank", "1"]
    finished = trireme("reward-model", str(EXAMPLE / "train.yaml"), *short, cwd=tmp_path)
    assert finished.code == 0, finished.output
    evaluation = json.loads((folder / "reward_model/summary.json").read_text())["evaluation"]
    assert evaluation["num_rows"] >= 500
    baselines = evaluation["baselines"]
    assert evaluation["interval_95"][0] > max(baselines["majority"], baselines["longer_answer"])
