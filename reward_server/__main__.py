"""Serve rewards from the command line: `python -m reward_server TARGET`, which is also `trireme reward serve TARGET`.

TARGET is a built-in reward, a Python path (my_reward.py:score), a YAML file with `services` and optionally `server`, or
`-` for such a file on standard input. With `--check` the rewards are loaded and nothing is served. It must not know how
anything is scored. Exit codes: 0 after a clean shutdown, 2 when the input is wrong.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from reward_server.config import RewardServerConfig, RewardServerFile, faults_in_words
from reward_server.logs import set_up_logs
from services.contracts.errors import UserError
from services.contracts.settings import Section
from services.processes.lifetime import die_with_parent, leave_sigterm_to_parent


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m reward_server") -> int:
    arguments = vars(_parser(prog).parse_args(argv))
    try:
        _serve(arguments.pop("target"), arguments.pop("parent_pid"), arguments.pop("check"), arguments)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _serve(target: str, parent_pid: int | None, check: bool, flags: dict[str, Any]) -> None:
    from reward_server.assembly import build_scorer
    from reward_server.server import serve_until_signal
    from services.transport.tracing import set_up_tracing

    signals = [signal.SIGINT, signal.SIGTERM]
    if parent_pid is not None:
        die_with_parent(parent_pid)
        leave_sigterm_to_parent()
        signals.remove(signal.SIGTERM)
    file = read_target(target, flags)
    if check:
        asyncio.run(_load(file))
        return
    set_up_logs(file.server)
    set_up_tracing("trireme-reward")
    serve_until_signal(lambda: build_scorer(file.services, file.server), file.server, signals=signals)


async def _load(file: RewardServerFile) -> None:
    from reward_server.assembly import build_scorer

    build_scorer(file.services, file.server)


def read_target(target: str, flags: dict[str, Any]) -> RewardServerFile:
    """What to serve and how; `flags` (fields of `RewardServerConfig`) go before the file's `server`.

    Raises:
        UserError: naming the key or value that is wrong.
    """
    if target == "-" or target.endswith((".yaml", ".yml")):
        values = _read_yaml(target)
    else:
        values = {"services": [{"name": target}]}
    try:
        return RewardServerFile(**values | {"server": (values.get("server") or {}) | flags})
    except ValidationError as error:
        raise UserError(f"{target}: {faults_in_words(error)}") from error
    except TypeError as error:
        raise UserError(f"{target}: `server` must be a mapping") from error


def _read_yaml(target: str) -> dict[str, Any]:  # Any: the user's YAML
    try:
        text = sys.stdin.read() if target == "-" else Path(target).read_text()
        values = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{target} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{target} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{target} must be a mapping with `services` and optionally `server`")
    return values


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Serve a reward over gRPC.")
    parser.add_argument("target", help="a built-in reward, my_reward.py:score, rewards.yaml, or - for standard input")
    parser.add_argument("--check", action="store_true", help="load the rewards, say what is wrong, and serve nothing")
    parser.add_argument(
        "--parent-pid", type=int, help="end with this process, which started the server, not at SIGTERM"
    )
    add_flags(parser, RewardServerConfig)
    return parser


def add_flags(parser: argparse.ArgumentParser, section: type[Section]) -> None:
    """A flag for each setting of a section; those that are given are in the parsed arguments, and no others."""
    for name, field in section.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        default = field.get_default(call_default_factory=True, validated_data={})
        text = f"{field.description} (default: {default})".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, dest=name, action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, metavar=name.upper(), help=text)


if __name__ == "__main__":
    sys.exit(main())
