"""Serve a reward over gRPC, or check a running reward service.

    trireme reward serve my_reward.py:score | rewards.yaml | math_answer [--port 50051]
    trireme reward check HOST:PORT [--reference '{"answer": "42"}'] [--stop 'kill 4711']

It must not know how rewards are scored or checked. `check` exits with 0 when no check failed, else 1.
"""

import argparse
import asyncio
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from reward_server.__main__ import add_flags
from reward_server.__main__ import main as serve
from reward_server.config import faults_in_words
from services.contracts.errors import UserError
from services.contracts.records import Json
from services.transport.reward_conformance import CHECKS, Finding, Verdict, check_service
from services.transport.reward_settings import check_addresses
from services.transport.security import ClientSecurity

SIGNS = {
    "passed": "[green]ok[/]",
    "warning": "[yellow]warning[/]",
    "failed": "[red]FAILED[/]",
    "not checked": "not checked",
}


def main(argv: list[str]) -> int:
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in ACTIONS:
        raise UserError(f"trireme reward has no action {name!r}; it has {', '.join(ACTIONS)}")
    return ACTIONS[name](rest)


def serve_reward(argv: list[str]) -> int:
    return serve(argv, prog="trireme reward serve")


def check_reward(argv: list[str]) -> int:
    arguments = _check_parser().parse_args(argv)
    findings = asyncio.run(_findings(arguments, _security(arguments)))
    _show(findings, arguments.address)
    return int(any(finding.verdict == "failed" for finding in findings))


def _security(arguments: argparse.Namespace) -> ClientSecurity:
    given = {name: value for name, value in vars(arguments).items() if name in ClientSecurity.model_fields}
    try:
        security = ClientSecurity(**given)
    except ValidationError as error:
        raise UserError(f"the flags cannot be used: {faults_in_words(error)}") from None
    check_addresses([arguments.address], security)
    return security


async def _findings(arguments: argparse.Namespace, security: ClientSecurity) -> list[Finding]:
    found = check_service(
        arguments.address,
        reference=_reference(arguments.reference),
        timeout_s=arguments.timeout_s,
        skip=arguments.skip,
        stop=None if arguments.stop is None else _start(arguments.stop),
        security=security,
    )
    return [finding async for finding in found]


def _start(command: str) -> Callable[[], Awaitable[None]]:
    """What starts the command that ends the service; it may take as long as the service does."""
    words = shlex.split(command)
    if not words or shutil.which(words[0]) is None:
        raise UserError(f"--stop {command!r} is not a command that can be run, such as 'kill 4711'")

    async def start() -> None:
        await asyncio.create_subprocess_exec(*words)

    return start


def _show(findings: list[Finding], address: str) -> None:
    table = Table(title=f"reward service {address}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("check", "result", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.check, SIGNS[finding.verdict], finding.text.replace("[", "\\["))
    console = Console()
    console.print(table)
    console.print(_sum(Counter(finding.verdict for finding in findings)))


def _sum(num: Counter[Verdict]) -> str:
    num_checks = num.total() - num["not checked"]
    if num["failed"]:
        return f"{num['failed']} of {num_checks} checks failed"
    if num["not checked"]:
        return f"of what was checked the service keeps the contract; {num['not checked']} checks were not made"
    return "the service keeps the contract"


def _reference(text: str) -> dict[str, Json]:
    try:
        reference = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--reference {text!r} is not JSON: {error}") from error
    if not isinstance(reference, dict):
        raise UserError(f"""--reference {text!r} must be a JSON object, such as {{"answer": "42"}}""")
    return reference


def _check_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trireme reward check", description="Test a reward service, in plain words.")
    parser.add_argument("address", help="HOST:PORT of the running service")
    parser.add_argument("--reference", default='{"answer": "42"}', help="reference of the samples sent, as JSON")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="deadline of each call, in seconds")
    parser.add_argument(
        "--stop",
        metavar="COMMAND",
        help="also check the drain: ends the service with this command, such as 'kill 4711' or 'docker stop reward'",
    )
    parser.add_argument(
        "--skip", action="append", default=[], metavar="CHECK", help=f"leave a check out: {', '.join(CHECKS)}"
    )
    add_flags(parser, ClientSecurity)
    return parser


ACTIONS: Mapping[str, Callable[[list[str]], int]] = {"serve": serve_reward, "check": check_reward}
