"""A command reads its input without torch, whose import takes longer than all else before the first process starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.command import write_config
from tests.end_to_end.tiny_run import run_sections
from tests.readme_tree import ROOT

COMMANDS = ["train", "sft", "prefer", "reward-model", "evaluate", "sample", "label-steps", "pipeline"]


def run(program: str, *arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert "PyTorch was not found" not in finished.stderr
    return finished.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_there_without_torch_and_transformers(name: str) -> None:
    module = f"services.cli.{name.replace('-', '_')}"
    found = run(f"import sys, {module}; print([n for n in ('torch', 'transformers', 'vllm') if n in sys.modules])")
    assert found.strip() == "[]"


def test_tokenizer_and_data_are_read_without_torch_which_is_there_for_whoever_wants_it(
    task: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", **run_sections(task, run={"dir": str(tmp_path / "run")}))
    program = """
import sys
from services.cli.__main__ import main

assert main(["train", sys.argv[1], "--dry-run"]) == 0
print("torch" in sys.modules, "transformers" in sys.modules)
import torch
print(torch.zeros(1).item())
"""
    assert run(program, config).splitlines()[-2:] == ["False True", "0.0"]


def test_who_has_torch_keeps_transformers_with_models() -> None:
    program = """
import torch
from services.control import light_transformers

light_transformers.allow()
print(light_transformers.transformers().LlamaForCausalLM.__module__)
"""
    assert run(program).strip() == "transformers.models.llama.modeling_llama"
