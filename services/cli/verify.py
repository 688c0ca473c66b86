"""Check that a run kept its promises, from its ledger, its checkpoints and its processes.

It must not know how anything is checked. Exit codes: 0 when every invariant held, 1 when one was violated, 2 when there
is nothing that can be checked.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.control.checks.findings import Verdict
from services.control.verification import Report, Totals, verify_run
from services.control.visible_text import visible

_SIGNS = {"held": "[green]held[/]", "violated": "[red]VIOLATED[/]", "not applicable": "[dim]not applicable[/]"}


def main(argv: list[str]) -> int:
    """`trireme verify RUN [--same-as OTHER] [--json]`"""
    arguments = _parser().parse_args(argv)
    report = verify_run(arguments.run, same_as=arguments.same_as)
    if arguments.json:
        print(json.dumps({"held": not report.violations, **asdict(report)}, indent=2))
    else:
        _show(report, arguments.run)
    return int(bool(report.violations))


def _show(report: Report, folder: Path) -> None:
    table = Table(title=f"run {escape(str(folder))}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("", "promise", "verdict", "found"):
        table.add_column(column, overflow="fold")
    for verdict in report.verdicts:
        table.add_row(verdict.invariant, verdict.title, _SIGNS[verdict.result], escape(visible(_found(verdict))))
    console = Console()
    console.print(table)
    for line in (*_lines(report.totals), *report.notes):
        console.print(escape(visible(line)), highlight=False)
    num_violated = len(report.violations)
    console.print(f"[red]{num_violated} of the promises violated[/]" if num_violated else "every promise held")


def _found(verdict: Verdict) -> str:
    more = verdict.num_violations - len(verdict.facts)
    return "\n".join([*verdict.facts, *([f"and {more:,} more"] if more > 0 else [])])


def _lines(totals: Totals) -> list[str]:
    """The totals, in words."""
    histogram = ", ".join(f"{count:,} at {staleness}" for staleness, count in totals.staleness.items())
    still_open = f": {', '.join(totals.open_prompts)}" if totals.open_prompts else ""
    more = ", …" if totals.num_open > len(totals.open_prompts) else ""
    return [
        f"prompts    {totals.trained:,} trained in {totals.steps:,} steps, {totals.filtered:,} filtered, "
        f"{totals.failed:,} failed, {totals.num_open:,} open{still_open}{more}",
        f"staleness  mean {totals.staleness_mean:.3f}, most {totals.staleness_max}; prompts: {histogram or 'none'}",
        f"attempts   {totals.attempts:,}, of which {totals.requeued:,} requeued; {totals.fenced:,} late replies fenced",
        f"workers    {totals.workers_joined:,} joined, {totals.workers_left:,} left",
        f"ledger     {totals.num_events:,} events, {totals.num_void:,} of them void; {totals.num_processes:,} "
        f"processes, {totals.num_resumes:,} resumes",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trireme verify",
        description="Check that a run kept its promises; a live run, as far as it went. Among them: each prompt that "
        "was drawn ended once, or the newest checkpoint holds it; a finished run leaves none open.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run (run.dir)")
    parser.add_argument(
        "--same-as", type=Path, metavar="OTHER", help="a run that must have ended in the same weights, bit for bit"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser
