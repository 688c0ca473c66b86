"""What `--dry-run` prints: the resolved configuration, the processes a run would start, and the first prompt.

It must not start anything.
"""

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.control.config import RunConfig
from services.control.parts import run_demands
from services.control.preflight import RunInputs


def print_plan(config: RunConfig, inputs: RunInputs) -> None:
    """Show what `trireme train` would do with this configuration."""
    console = Console()
    console.print(escape(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)))
    console.print(_processes(config))
    prompts = inputs.prompts
    console.print(
        f"{len(prompts.prompts)} prompts ({prompts.num_truncated} truncated, {prompts.num_dropped} dropped), "
        f"sequences of at most {inputs.max_length} tokens"
    )
    if inputs.evaluation_prompts is not None:
        console.print(f"{len(inputs.evaluation_prompts.prompts)} held-out prompts")
    first = prompts.prompts[0]
    console.print(f"first prompt, {len(first.token_ids)} tokens:")
    console.print(escape(first.text), style="cyan")
    console.print(f"reference: {escape(str(dict(first.reference)))}")


def _processes(config: RunConfig) -> Table:
    table = Table(title="Processes", title_justify="left")
    for column in ("process", "cores", "GPUs"):
        table.add_column(column)
    for demand in run_demands(config):
        table.add_row(demand.name, f"{demand.cpus:g}", f"{demand.gpus:g}")
    for address in config.reward.addresses:
        table.add_row(f"reward server at {escape(address)} (already running)", "", "")
    if config.reward.services:
        names = " + ".join(service.name for service in config.reward.services)
        table.add_row(f"reward server: {escape(names)}", "", "")
    return table
