"""A recipe: commands in order, each with its configuration, which may name what earlier stages made.

It must not start anything. Invariants: `${NAME}` is the folder of an earlier stage, and only what that stage leaves
behind may follow it; every stage's run.dir is its own folder below the pipeline's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings

from services.contracts.errors import UserError
from services.contracts.settings import Section
from services.control.config import RunSection, SettingsRoot
from services.control.config_values import build_config, dotted_keys, merge_values, read_values
from services.control.stage_commands import STAGE_COMMANDS, StageCommand

Reference = tuple[str, str]
"""A stage's name, and what of its folder is meant; empty for the folder itself."""

_REFERENCE = re.compile(r"\$\{([^}]*)\}(?:/([\w.\-]+))?")


class StageConfig(Section):
    """One stage: a command and its configuration."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """What the stage is called, in references and as its folder: small letters, digits and underscores."""
    command: str
    """What is run, such as sft, train, sample or evaluate."""
    file: Path | None = None
    """A YAML file of the command, on which `config` is laid."""
    config: dict[str, Any] = Field(default_factory=dict)  # Any: the user's YAML
    """The command's sections and settings; `${NAME}` is the folder of an earlier stage, as in `${warmup}/export`."""

    @field_validator("command")
    @classmethod
    def _command_exists(cls, command: str) -> str:
        if command not in STAGE_COMMANDS:
            raise ValueError(f"command {command!r} is none of a pipeline's; choose one of {', '.join(STAGE_COMMANDS)}")
        return command


class PipelineConfig(SettingsRoot):
    """Everything `trireme pipeline` can be told."""

    run: RunSection = RunSection()
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    """The stages, in the order in which they run."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two stages are called {twice!r}, and a name is a folder; rename one")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage whose configuration is whole.

    Attributes:
        folder: its run.dir.
        values: its sections as the recipe has them, with references.
        config: the command's configuration, with references resolved.
        inputs: the stages that it reads from.
    """

    name: str
    command: StageCommand
    command_name: str
    folder: Path
    values: Mapping[str, Any]  # Any: the user's YAML
    config: BaseSettings
    inputs: tuple[str, ...]

    def with_references(self, replace: Callable[[Reference], str]) -> BaseSettings:
        """The configuration with each reference replaced. Raises `UserError`, and what `replace` raises."""
        return build_config(self.command.config, _replaced(self.values, replace), where=f"stage {self.name}")

    def model_path(self, replace: Callable[[Reference], str]) -> str:
        """model.path with each reference replaced, of a command that has a model."""
        return str(_replaced(self.values["model"]["path"], replace))


def resolve(pipeline: PipelineConfig) -> list[Stage]:
    """Every stage with its configuration.

    Raises:
        UserError: naming the stage, with the wrong setting or reference.
    """
    stages: list[Stage] = []
    for stage in pipeline.stages:
        stages.append(_resolve(stage, pipeline.run, {earlier.name: earlier for earlier in stages}))
    return stages


def _resolve(stage: StageConfig, run: RunSection, earlier: Mapping[str, Stage]) -> Stage:
    where = f"stage {stage.name}"
    command = STAGE_COMMANDS[stage.command]
    folder = run.dir / stage.name
    values = merge_values(read_values(stage.file) if stage.file else {}, stage.config)
    own = values.get("run") or {}
    if stage.file is None and isinstance(own, Mapping) and "dir" in own:
        raise UserError(f"{where}: run.dir is set to {own['dir']!r}, and a pipeline gives each stage its own: {folder}")
    defaults: dict[str, Any] = {"seed": run.seed}  # Any: as `values`
    if "run.name" in dotted_keys(command.config):
        defaults["name"] = f"{run.name}: {stage.name}"
    values["run"] = {**defaults, **own, "dir": str(folder)}
    inputs: list[str] = []

    def folder_of(reference: Reference) -> str:
        name, output = reference
        _check_reference(reference, earlier, where)
        inputs.append(name)
        return "/".join(filter(None, (str(run.dir / name), output)))

    config = build_config(command.config, _replaced(values, folder_of), where=where)
    return Stage(
        name=stage.name,
        command=command,
        command_name=stage.command,
        folder=folder,
        values=values,
        config=config,
        inputs=tuple(dict.fromkeys(inputs)),
    )


def _check_reference(reference: Reference, earlier: Mapping[str, Stage], where: str) -> None:
    name, output = reference
    if name not in earlier:
        raise UserError(
            f"{where}: ${{{name}}} is no stage before this one; there are {list(earlier)}, named as in ${{NAME}}/export"
        )
    outputs = earlier[name].command.outputs
    if output and output not in outputs:
        raise UserError(
            f"{where}: ${{{name}}}/{output} is nothing that `trireme {earlier[name].command_name}` leaves behind; "
            f"there is {' and '.join(outputs)}"
        )


def _replaced(value: Any, replace: Callable[[Reference], str]) -> Any:  # Any: the user's YAML
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: replace((found[1], found[2] or "")), value)
    if isinstance(value, Mapping):
        return {key: _replaced(inner, replace) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_replaced(inner, replace) for inner in value]
    return value
