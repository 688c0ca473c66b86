"""Run a recipe: commands one after the other, each on what earlier ones made."""

import shlex
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from services.cli.arguments import load_config, take_switch, take_value
from services.cli.held_run import INTERRUPTED
from services.contracts.records import Json
from services.control import run_folder
from services.control.pipeline import StageEnded, choose, look_ahead, plan, run_stages, summarise
from services.control.pipeline_config import PipelineConfig, resolve
from services.control.stage_process import run_command


def main(argv: list[str]) -> int:
    """`trireme pipeline recipe.yaml [--from STAGE] [--until STAGE] [--dry-run] [--section.key value ...]`"""
    dry_run, rest = take_switch(argv, "--dry-run")
    first, rest = take_value(rest, "--from")
    last, rest = take_value(rest, "--until")
    config = load_config(
        PipelineConfig,
        rest,
        prog="trireme pipeline",
        summary="Runs the stages of a recipe in order. A stage that is finished is skipped, one that was interrupted "
        "goes on. --dry-run: check all stages, start nothing. --from STAGE, --until STAGE: only a part of them.",
        switches=("--dry-run", "--from", "--until"),
    )
    stages = resolve(config)
    planned = plan(stages, choose(stages, first=first, last=last))
    look_ahead(planned, stages, tell=print)
    if dry_run:
        return 0
    with run_folder.hold(config.run.dir, resume=False):
        stopped = run_stages(planned, run=run_command, tell=_tell)
        rows = summarise(stages)
        run_folder.write_summary(config.run.dir, {"stages": list(rows)})
    if rows:
        _print_table(rows)
    return 0 if stopped is None else _stop(stopped, argv)


def _tell(what: str) -> None:
    print(f"\n== {what}", flush=True)


def _stop(stopped: StageEnded, argv: Sequence[str]) -> int:
    """Say why the pipeline ends here and how it goes on; returns the exit code."""
    code, interrupted = stopped.ended.code, stopped.ended.interrupted
    if stopped.is_done:
        how = "is finished, and the pipeline was interrupted after it"
    elif code == 0:
        how = "was drained before its last step"
    elif interrupted or code == INTERRUPTED:
        how = "was interrupted"
    else:
        how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
    print(f"stage {stopped.stage.name} {how}\ngo on with: trireme pipeline {shlex.join(argv)}", file=sys.stderr)
    if interrupted or code in (0, INTERRUPTED):
        return INTERRUPTED
    return code if code > 0 else 1


def _print_table(rows: Sequence[dict[str, Json]]) -> None:
    table = Table(title="Stages", title_justify="left")
    for column in ("stage", "command", "steps", "samples", "kept", "accuracy before", "after", "seconds"):
        table.add_column(column)
    for row in rows:
        counts = [str(row.get(name, "")) for name in ("num_steps", "num_samples", "num_kept")]
        shares = [_share(row.get(name)) for name in ("accuracy_before", "accuracy_after")]
        table.add_row(str(row["name"]), str(row["command"]), *counts, *shares, f"{row['seconds']:.0f}")
    Console().print(table)


def _share(value: Json) -> str:
    return f"{value:.1%}" if isinstance(value, float | int) else ""
