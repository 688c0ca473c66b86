"""What `trireme average` does: models between the one that training began with and the one that it ended with.

It must not know how a tensor is averaged. Invariants: nothing is written before both models were compared; a folder
that is not an earlier average is never written over; what lies in its place is whole.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator

from services.contracts.errors import UserError
from services.contracts.records import Json
from services.contracts.settings import ModelConfig
from services.control import run_folder
from services.control.config import RunSection, SettingsRoot
from services.control.light_transformers import transformers
from services.control.preflight import first_differing_token, load_tokenizer

AVERAGE_FILE = "average.json"
"""In the folder of an average: of what it is one."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf")
_SAYS_NOTHING_OF_THE_MODEL = {"_name_or_path", "dtype", "transformers_version", "use_cache"}


class AverageConfig(SettingsRoot):
    """Everything `trireme average` can be told."""

    run: RunSection = RunSection()
    start: str
    """The model that training began with: a folder in Hugging Face format, or a name on the Hugging Face hub."""
    end: str
    """The model that it ended with, such as the `export` of a run; adapters are merged there."""
    alphas: tuple[float, ...] = Field(default=(0.5,), min_length=1)
    """How far to go from start (0) to end (1), for each model to write. One is written to `export` in run.dir, several
    to `alpha_0.25` and so on."""

    @field_validator("alphas")
    @classmethod
    def _between_the_models(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        outside = [alpha for alpha in alphas if not 0 <= alpha <= 1]
        if outside:
            raise ValueError(f"alpha {outside[0]:g} lies beyond one of the models; take numbers from 0 to 1")
        if len(set(alphas)) < len(alphas):
            raise ValueError(f"alphas {list(alphas)} has one twice")
        return alphas

    def folder(self, alpha: float) -> Path:
        """Where the model of an alpha is written."""
        return self.run.dir / (run_folder.EXPORT if len(self.alphas) == 1 else f"alpha_{alpha:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageInputs:
    """Both models as folders on this machine."""

    start: Path
    end: Path


def check_average(config: AverageConfig) -> AverageInputs:
    """Find both models and compare them: configuration, tokenizer, tensors.

    Raises:
        UserError: they cannot be averaged, or a folder that is to be written holds something else.
    """
    from ppo_learner.interpolation import check_alike  # late: it needs torch, and the pipeline reads this file, too

    inputs = AverageInputs(start=_local(config.start, "start"), end=_local(config.end, "end"))
    if run_folder.has_run(config.run.dir):
        raise UserError(f"run.dir {config.run.dir} holds a training run; set it to another folder")
    for alpha in config.alphas:
        _refuse_to_overwrite(config.folder(alpha))
    (ours, _), (theirs, _) = (
        load_tokenizer(ModelConfig(path=str(path)), ends_completions=False, setting=setting)
        for setting, path in (("start", inputs.start), ("end", inputs.end))
    )
    token = first_differing_token(ours, theirs)
    if token is not None:
        raise UserError(
            f"start {config.start!r} has another tokenizer than end {config.end!r} (token {token!r}); average a model "
            "with the one that it was trained from"
        )
    _compare_configurations(config, inputs)
    check_alike(inputs.start, inputs.end)
    return inputs


def write_averages(config: AverageConfig, inputs: AverageInputs) -> Sequence[Path]:
    """Write every model between the two, whole, with tokenizer and configuration of the end. Returns their folders."""
    return [_write(config, inputs, alpha) for alpha in config.alphas]


def _write(config: AverageConfig, inputs: AverageInputs, alpha: float) -> Path:
    from ppo_learner.interpolation import write_between  # late, as above

    folder = config.folder(alpha)
    new = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for path in inputs.end.iterdir():
        if path.is_file() and path.suffix not in _WEIGHTS:
            shutil.copyfile(path, new / path.name)
    write_between(inputs.start, inputs.end, alpha, new)
    made_of: dict[str, Json] = {"start": config.start, "end": config.end, "alpha": alpha}
    run_folder.write_summary(new, made_of, name=AVERAGE_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return folder


def _local(path: str, setting: str) -> Path:
    """The folder itself, or that of a hub model, which is downloaded where it is not there yet."""
    if Path(path).is_dir():
        return Path(path)
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise UserError(f"{setting} {path!r} is no folder; give one in Hugging Face format, or a hub name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))
    except (OSError, ValueError) as error:
        raise UserError(f"{setting} {path!r} is no folder, and cannot be had from the hub: {error}") from error


def _refuse_to_overwrite(folder: Path) -> None:
    if folder.exists() and not (folder / AVERAGE_FILE).is_file():
        raise UserError(f"{folder} holds something that is no average; set run.dir to another folder")


def _compare_configurations(config: AverageConfig, inputs: AverageInputs) -> None:
    """Settings that no shape shows, such as the number of heads."""
    start, end = (transformers().AutoConfig.from_pretrained(path).to_dict() for path in (inputs.start, inputs.end))
    for key in sorted((start.keys() | end.keys()) - _SAYS_NOTHING_OF_THE_MODEL):
        if start.get(key) != end.get(key):
            raise UserError(
                f"{key} is {json.dumps(start.get(key), default=str)} in the configuration of {config.start!r} and "
                f"{json.dumps(end.get(key), default=str)} in that of {config.end!r}; average a model with the one that "
                "it was trained from"
            )
