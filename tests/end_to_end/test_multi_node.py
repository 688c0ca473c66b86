"""The command that a user types, on a Ray cluster of several nodes."""

from pathlib import Path

import pytest

from services.control import run_folder, run_state
from tests.end_to_end.command import json_lines, trireme, write_config
from tests.end_to_end.tiny_run import run_sections
from tests.ray_nodes import let_commands_join, ray_nodes


def test_a_run_on_a_cluster_trains_with_learner_and_worker_on_different_nodes(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(task / "model")
    changes = {
        "model": {"path": "model"},  # In the folder of the command, which is not that of the nodes.
        "cluster": {"address": "auto", "cpus_per_learner_rank": 3},
        "train": {"num_steps": 2},
    }
    sections = run_sections(task, **changes, evaluate={})
    config = write_config(tmp_path / "run.yaml", **sections)
    with ray_nodes(3, 1) as nodes:  # No node has room for both.
        let_commands_join(nodes, monkeypatch)
        finished = trireme("train", config, cwd=tmp_path)
    assert finished.code == 0, finished.output
    run = tmp_path / "run"
    assert [row["step"] for row in json_lines(run / "metrics.jsonl")] == [1, 2]
    saved, _, _ = run_state.newest(run / run_folder.CHECKPOINTS)
    assert (saved / run_state.LEARNER_FOLDER / "policy" / "rank_0.pt").stat().st_size > 0
    assert (run / run_folder.EXPORT / "model.safetensors").stat().st_size > 0
