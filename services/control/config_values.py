"""From a YAML mapping to a validated configuration, with every mistake told in one message.

It must not know what any setting means, nor the command line.
"""

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings

from services.contracts.errors import UserError
from services.control.near_settings import meant_by

Config = TypeVar("Config", bound=BaseSettings)
Values = Mapping[str, Any]  # Any: the user's YAML


def read_values(path: Path) -> dict[str, Any]:  # Any: ditto
    """The sections of a YAML file. Raises `UserError` when it cannot be read or is no mapping."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"the configuration {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"the configuration {path} must be a mapping of sections, not {type(values).__name__}")
    return values


def merge_values(base: Values, over: Values) -> dict[str, Any]:  # Any: ditto
    """`base` with `over` laid on it, section by section."""
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        merged[key] = merge_values(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def build_config(config_type: type[Config], values: Values, *, where: str = "") -> Config:
    """A configuration of these values.

    Args:
        where: which file or stage they come from, for errors.

    Raises:
        UserError: naming the unknown key and its nearest neighbour, or each wrong value and its rule.
    """
    keys = set(dotted_keys(config_type))
    refuse_unknown(given_keys(values, keys), keys, f"{where}: key " if where else "key ")
    try:
        return config_type(**values)
    except ValidationError as error:
        raise UserError(_describe(error, where)) from error


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting of a configuration, and every section."""
    return (key for key, _ in dotted_types(model, prefix))


def dotted_types(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:  # Any: type expressions
    """Every setting and every section, each with its type."""
    for name, field in model.model_fields.items():
        yield prefix + name, field.annotation
        nested = _section_type(field.annotation)
        if nested is not None:
            yield from dotted_types(nested, f"{prefix}{name}.")


def takes_many(annotation: Any) -> bool:  # Any: a type expression
    """Whether a setting of this type is a list, a mapping or a section."""
    return any(
        typing.get_origin(one) in (tuple, list, dict) or (isinstance(one, type) and issubclass(one, BaseModel))
        for one in _alternatives(annotation)
    )


def refuse_unknown(given: Iterable[str], keys: set[str], what: str) -> None:
    """Refuse the first key that is no setting, with its nearest neighbour. Raises `UserError`."""
    for key in given:
        if key not in keys and key not in ("help", "h"):
            raise UserError(f"{what}{key} is not a setting; {meant_by(key, keys)}")


def given_keys(values: Values, keys: set[str], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a YAML mapping, descending only into sections."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        yield key
        if isinstance(value, Mapping) and any(known.startswith(f"{key}.") for known in keys):
            yield from given_keys(value, keys, f"{key}.")


def _section_type(annotation: Any) -> type[BaseModel] | None:  # Any: a type expression
    candidates = _alternatives(annotation)
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _alternatives(annotation: Any) -> tuple[Any, ...]:  # Any: type expressions
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def _describe(error: ValidationError, where: str) -> str:
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        given = "" if fault["type"] == "missing" else f" (given: {fault['input']!r:.80})"
        lines.append(f"{key or 'configuration'}: {fault['msg'].removeprefix('Value error, ')}{given}")
    return f"wrong configuration{f' in {where}' if where else ''}:\n  " + "\n  ".join(lines)
