"""Serve a reward over gRPC, or check a running reward service.

    trireme reward serve my_reward.py:score | rewards.yaml | math_answer [--port 50051]
    trireme reward check HOST:PORT [--reference '{"answer": "42"}']

It must not know how rewards are scored or checked. `check` exits with 0 when the service keeps the contract, else 1.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table

from reward_server.__main__ import main as serve
from services.contracts.errors import UserError
from services.contracts.records import Json
from services.transport.reward_conformance import Finding, check_service
from services.transport.reward_settings import check_addresses

SIGNS = {"passed": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]FAILED[/]"}


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
    check_addresses([arguments.address], allow_plaintext=arguments.allow_plaintext)
    findings = asyncio.run(_findings(arguments.address, _reference(arguments.reference), arguments.timeout_s))
    _show(findings, arguments.address)
    return int(any(finding.verdict == "failed" for finding in findings))


async def _findings(address: str, reference: Mapping[str, Json], timeout_s: float) -> list[Finding]:
    return [finding async for finding in check_service(address, reference=reference, timeout_s=timeout_s)]


def _show(findings: list[Finding], address: str) -> None:
    table = Table(title=f"reward service {address}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("check", "result", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.check, SIGNS[finding.verdict], finding.text.replace("[", "\\["))
    console = Console()
    console.print(table)
    num_failed = sum(finding.verdict == "failed" for finding in findings)
    console.print(f"{num_failed} of {len(findings)} checks failed" if num_failed else "the service keeps the contract")


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
    parser.add_argument("--allow-plaintext", action="store_true", help="permit an address off this machine")
    return parser


ACTIONS: Mapping[str, Callable[[list[str]], int]] = {"serve": serve_reward, "check": check_reward}
