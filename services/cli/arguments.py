"""From `run.yaml --section.key value …` to a validated configuration, with every mistake told in one message.

It must not know what any setting means. Precedence: flags, then the YAML file, then the defaults beside each field.
"""

import argparse
import difflib
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

from services.contracts.errors import UserError
from services.control.visible_text import visible

Config = TypeVar("Config", bound=BaseSettings)


def load_config(config_type: type[Config], argv: Sequence[str], *, prog: str, summary: str) -> Config:
    """Read a configuration from an optional YAML file and `--section.key value` flags.

    Args:
        argv: the command's arguments without its name; the first may be a YAML file.
        prog: what the help calls the command.
        summary: the help's first line.

    Raises:
        UserError: naming the unknown key and its nearest neighbour, or the wrong value and its rule.
        SystemExit: after printing the help.
    """
    path, flags = _split(argv)
    keys = set(_dotted_keys(config_type))
    _refuse_unknown((flag.removeprefix("--").split("=")[0] for flag in flags if flag.startswith("--")), keys, "flag --")
    values = _read_yaml(path) if path else {}
    _refuse_unknown(_leaves(values, keys), keys, f"{path}: key ")
    parser = _Parser(prog=f"{prog} [run.yaml]", description=summary)
    source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        config_type,
        cli_parse_args=flags,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=False,
        root_parser=parser,
    )
    try:
        return config_type(**_merge(values, source()))
    except SettingsError as error:
        raise UserError(f"the flags cannot be read: {error}") from error
    except ValidationError as error:
        raise UserError(_describe(error, path)) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"the flags cannot be read: {message}")


def take_switch(argv: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Whether the switch `name` (such as "--resume") is among the arguments, and the arguments without it."""
    return name in argv, [argument for argument in argv if argument != name]


def _split(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    if argv and not argv[0].startswith("-"):
        return Path(argv[0]), list(argv[1:])
    return None, list(argv)


def _read_yaml(path: Path) -> dict[str, Any]:  # Any: the user's YAML
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"the configuration {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"the configuration {path} must be a mapping of sections, not {type(values).__name__}")
    return values


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        nested = _section_type(field.annotation)
        if nested is not None:
            yield from _dotted_keys(nested, f"{prefix}{name}.")


def _section_type(annotation: Any) -> type[BaseModel] | None:  # Any: a type expression
    candidates = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _leaves(values: Mapping[str, Any], keys: set[str], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a YAML mapping, descending only into sections."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        yield key
        if isinstance(value, Mapping) and any(known.startswith(f"{key}.") for known in keys):
            yield from _leaves(value, keys, f"{key}.")


def _refuse_unknown(given: Iterator[str], keys: set[str], what: str) -> None:
    for key in given:
        if key not in keys and key not in ("help", "h"):
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            hint = (
                f"; did you mean {near[0]}?"
                if near
                else f"; the sections are {sorted(k for k in keys if '.' not in k)}"
            )
            raise UserError(f"{what}{key} is not a setting{hint}")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        merged[key] = _merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def _describe(error: ValidationError, path: Path | None) -> str:
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        given = "" if fault["type"] == "missing" else f" (given: {fault['input']!r:.80})"
        lines.append(f"{key or 'configuration'}: {fault['msg'].removeprefix('Value error, ')}{given}")
    where = f" in {path}" if path else ""
    return f"wrong configuration{where}:\n  " + "\n  ".join(lines)


def fail(error: BaseException) -> int:
    """Print an expected failure without a traceback and return its exit code."""
    print(f"error: {visible(str(error))}", file=sys.stderr)
    return getattr(error, "exit_code", 1)
