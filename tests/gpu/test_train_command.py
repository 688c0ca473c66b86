"""`trireme train` with worker and learner on GPUs of their own, placed by Ray."""

from pathlib import Path

import pytest
import torch

from tests.end_to_end.command import json_lines, trireme, write_config
from tests.end_to_end.tiny_run import run_sections
from tests.gpu.variants import TOLERANCE


@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs, one for the rollout worker and one for the learner"
)
@pytest.mark.parametrize("transport", ["shared_memory", "disk"])
def test_a_run_trains_on_gpus(task: Path, tmp_path: Path, transport: str) -> None:
    sections = run_sections(
        task,
        model={"dtype": "bfloat16"},
        rollout={"gpus_per_worker": 1, "gpu_memory_utilization": 0.2, "enforce_eager": True},
        learner={"zero_stage": 2},
        cluster={"gpus_per_learner_rank": 1},
        weights={"transport": transport},
    )

    finished = trireme("train", write_config(tmp_path / "run.yaml", **sections), cwd=tmp_path)

    assert finished.code == 0, finished.output
    metrics = json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    gaps = [float(str(row["sampler_gap/mean"])) for row in metrics]
    # These weights are large, so that bfloat16 knows their logits to a few hundredths only.
    assert max(gaps) <= 5 * TOLERANCE["bfloat16"]
