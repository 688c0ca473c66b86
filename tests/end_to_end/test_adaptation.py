"""A reward model learns while a policy is trained against it: the run goes on, and each group has one version."""

from pathlib import Path

from services.contracts.reward_model import read_card
from tests.end_to_end.command import json_lines, started, trireme, write_config
from tests.end_to_end.tiny_run import run_sections
from tests.tiny import write_tiny_reward_model

TRAINER = {
    "model": {"path": "given by the loop", "dtype": "float32"},
    "data": {"examples": "given by the loop", "validation_share": 0.25, "max_tokens": 32},
    "learner": {"lr": 3e-3},
    "train": {"num_steps": 6, "prompts_per_step": 8, "checkpoint_every": 0},
}


def versions_scored(run: Path) -> list[str]:
    """The reward versions of the accepted groups, each once, in order."""
    events = json_lines(run / "events.jsonl") if (run / "events.jsonl").exists() else []
    return list(dict.fromkeys(str(event["reward_version"]) for event in events if event["event"] == "accepted"))


def test_the_reward_model_is_replaced_during_a_run_by_one_that_learnt_from_it(task: Path, tmp_path: Path) -> None:
    trainer = write_config(tmp_path / "trainer.yaml", **TRAINER)
    initial = write_tiny_reward_model(tmp_path / "initial", version="first", max_tokens=32)
    follow = {"dir": "adapt", "follow": "run", "initial": str(initial), "trainer": trainer, "num_versions": 1}
    labels = {"services": [{"name": f"{task / 'digit_share.py'}:score"}]}
    adapt = write_config(tmp_path / "adapt.yaml", run=follow | {"poll_s": 0.2}, labels=labels, pairs={"per_round": 16})
    model = {"name": "reward_model", "options": {"path": "adapt/latest", "device": "cpu", "reload_every_s": 0.2}}
    sections = run_sections(task, reward={"services": [model]}, metrics={"samples_per_step": 64})
    sections["train"] |= {"num_steps": 1000, "checkpoint_every": 0}

    with started("adapt", adapt, cwd=tmp_path) as adapting:
        adapting.wait_until((tmp_path / "adapt" / "latest").is_symlink, "the first version")
        with started("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path) as training:
            adapted = adapting.finish()
            assert adapted.code == 0, adapted.output
            training.wait_until(lambda: len(versions_scored(tmp_path / "run")) > 1, "scores of the second version")
            training.interrupt()
            ended = training.finish()

    assert ended.code == 130, ended.output
    second = read_card(tmp_path / "adapt" / "latest").version
    assert versions_scored(tmp_path / "run") == ["reward_model@first", f"reward_model@{second}"]
    assert f"version 1 is served: {second}" in adapted.output
    samples = json_lines(tmp_path / "run" / "samples.jsonl")
    by_group: dict[object, set[object]] = {}
    for sample in samples:
        by_group.setdefault((sample["step"], sample["prompt_id"]), set()).add(sample["reward_version"])
    assert all(len(versions) == 1 for versions in by_group.values())
    pairs = json_lines(tmp_path / "adapt" / "pairs.jsonl")
    assert len(pairs) >= 16
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    verified = trireme("verify", "run", cwd=tmp_path)
    assert verified.code == 0, verified.output
