"""The command that averages models: what it writes, what transformers makes of it, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.cli.average import main
from services.contracts.errors import UserError
from tests.tiny import write_tiny_model


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return write_tiny_model(tmp_path / "start", seed=0), write_tiny_model(tmp_path / "end", seed=1)


def average(start: Path, end: Path, folder: Path, alphas: str = "0.5") -> int:
    return main(["--start", str(start), "--end", str(end), "--alphas", alphas, "--run.dir", str(folder)])


def test_an_average_is_a_model_with_the_mean_of_the_weights(models: tuple[Path, Path], tmp_path: Path) -> None:
    assert average(*models, tmp_path / "run") == 0
    export = tmp_path / "run" / "export"
    before, after, middle = (AutoModelForCausalLM.from_pretrained(folder) for folder in (*models, export))
    weights = dict(middle.named_parameters())
    for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(weights[name], (one + other) / 2)
    assert AutoTokenizer.from_pretrained(export).encode("12+3=") == [3, 4, 12, 5, 14]
    assert json.loads((export / "average.json").read_text()) == {
        "start": str(models[0]),
        "end": str(models[1]),
        "alpha": 0.5,
    }


def test_several_alphas_make_several_models_and_can_be_made_again(models: tuple[Path, Path], tmp_path: Path) -> None:
    for _ in range(2):
        assert average(*models, tmp_path / "run", "0.25,1") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["averages"] == {name: str(tmp_path / "run" / f"alpha_{name}") for name in ("0.25", "1")}
    end = load_file(models[1] / "model.safetensors")
    found = load_file(tmp_path / "run" / "alpha_1" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in end.items())


def test_what_is_no_average_is_never_written_over(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "run" / "export").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds something that is no average; set run.dir to another folder"):
        average(*models, tmp_path / "run")
    (tmp_path / "trained" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds a training run"):
        average(*models, tmp_path / "trained", "0.1,0.2")


def test_models_that_differ_in_what_no_shape_shows_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    start = models[0]
    heads = write_tiny_model(tmp_path / "heads", num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    with pytest.raises(UserError, match=r"head_dim is 32 in the configuration of .* and 16 in that"):
        average(start, heads, tmp_path / "run")
    renamed = write_tiny_model(tmp_path / "renamed", characters="1023456789+-=abcdefghijklmnopqrstuvwxyz .?!")
    with pytest.raises(UserError, match=r"has another tokenizer than end .* \(token '0'\)"):
        average(start, renamed, tmp_path / "run")
    with pytest.raises(UserError, match=r"alpha 1.5 lies beyond one of the models"):
        average(*models, tmp_path / "run", "1.5")
    with pytest.raises(UserError, match=r"start '.*nowhere' is no folder"):
        average(tmp_path / "nowhere", start, tmp_path / "run")
