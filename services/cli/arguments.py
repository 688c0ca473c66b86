"""From `run.yaml --section.key value …` to a validated configuration, with every mistake told in one message.

It must not know what any setting means. Precedence: flags, then the YAML file, then the defaults beside each field.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import yaml
from pydantic_settings import CliSettingsSource, SettingsError

from services.contracts.errors import UserError
from services.contracts.settings import is_list
from services.control.config_values import (
    Config,
    Values,
    build_config,
    dotted_keys,
    dotted_types,
    given_keys,
    merge_values,
    read_values,
    refuse_unknown,
    takes_many,
)
from services.control.visible_text import visible


def load_config(
    config_type: type[Config], argv: Sequence[str], *, prog: str, summary: str, switches: Sequence[str] = ()
) -> Config:
    """Read a configuration from an optional YAML file and `--section.key value` flags.

    Args:
        argv: the command's arguments without its name; the first may be a YAML file.
        prog: what the help calls the command.
        summary: the help's first line.
        switches: what else the command takes, which is not among the arguments any more.

    Raises:
        UserError: naming the unknown key and its nearest neighbour, or the wrong value and its rule.
        SystemExit: after printing the help.
    """
    path, flags = _split(argv)
    types = dict(dotted_types(config_type))
    given_flags = (flag.removeprefix("--").split("=")[0] for flag in flags if flag.startswith("--"))
    refuse_unknown(given_flags, {*types, *switches}, "flag --")
    values = read_values(path) if path else {}
    _refuse_another_command(values, set(types), f"{path} is no configuration of `{prog}`")
    parser = _Parser(prog=f"{prog} [run.yaml]", description=summary)
    try:
        source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
            config_type,
            cli_parse_args=list(_as_json(flags, types)),
            cli_hide_none_type=True,
            cli_avoid_json=True,
            cli_parse_none_str="null",  # As a file spells it.
            cli_implicit_flags=False,
            root_parser=parser,
        )
        given = source()
    except SettingsError as error:
        raise UserError(f"the flags cannot be read: {error}") from error
    return build_config(config_type, merge_values(values, given), where=str(path or ""))


def _refuse_another_command(values: Values, keys: set[str], what: str) -> None:
    """Refuse a file with unknown keys all of which another command has."""
    unknown = sorted(set(given_keys(values, keys)) - keys)
    if not unknown:
        return
    from services.control.stage_commands import STAGE_COMMANDS  # Every command's settings, for this error alone.

    for name, command in STAGE_COMMANDS.items():
        known = set(dotted_keys(command.config))
        if known.issuperset(given_keys(values, known)):
            raise UserError(f"{what}, which has no {unknown[0]}; it is one of `trireme {name}`")


def _as_json(flags: Sequence[str], types: Mapping[str, object]) -> Iterator[str]:
    """The flags with each list and mapping as JSON, which a user may write as in a file."""
    key = ""
    for flag in flags:
        if flag.startswith("--"):
            key, separator, value = flag.removeprefix("--").partition("=")
            yield f"--{key}={_value_as_json(key, value, types.get(key))}" if separator else flag
        else:
            yield _value_as_json(key, flag, types.get(key))


def _value_as_json(key: str, value: str, wanted: object) -> str:
    if value == "null" and is_list(wanted):
        return "[]"
    if not (takes_many(wanted) and value.lstrip().startswith(("[", "{"))):
        return value
    with suppress(json.JSONDecodeError):  # First, as YAML reads 1e-3 as a text.
        return json.dumps(json.loads(value))
    try:
        return json.dumps(yaml.safe_load(value), default=str)
    except yaml.YAMLError as error:
        fault = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(
            f"flag --{key} {value!r} cannot be read: {fault}; write it as in a file, in one pair of quotes, such as "
            "'[{name: exact_match}]'"
        ) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"the flags cannot be read: {message}")


def take_switch(argv: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Whether the switch `name` (such as "--resume") is among the arguments, and the arguments without it."""
    return name in argv, [argument for argument in argv if argument != name]


def take_value(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """What follows the flag `name` (such as "--from"), and the arguments without both.

    Raises:
        UserError: nothing follows it.
    """
    if name not in argv:
        return None, list(argv)
    place = list(argv).index(name)
    if place + 1 == len(argv) or argv[place + 1].startswith("-"):
        raise UserError(f"{name} needs a value, as in {name} NAME")
    return argv[place + 1], [*argv[:place], *argv[place + 2 :]]


def _split(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    if argv and not argv[0].startswith("-"):
        return Path(argv[0]), list(argv[1:])
    return None, list(argv)


def fail(error: BaseException) -> int:
    """Print an expected failure without a traceback and return its exit code."""
    print(f"error: {visible(str(error))}", file=sys.stderr)
    return getattr(error, "exit_code", 1)
