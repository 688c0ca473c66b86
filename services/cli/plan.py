"""What `--dry-run` prints: the resolved configuration, the processes a run would start, and what it would begin with.

It must not start anything.
"""

from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rollout_workers.demonstrations import stretches
from rollout_workers.preference_data import PreferenceExamples
from services.contracts.records import Demonstration
from services.control.config import PreferenceRunConfig, RunConfig, SupervisedRunConfig, TrainerRoot
from services.control.evaluate_config import MAIN
from services.control.parts import rank_demands, run_demands
from services.control.placement import Demand
from services.control.preflight import RunInputs, SupervisedInputs, load_tokenizer
from services.control.visible_text import visible


def print_plan(config: RunConfig, inputs: RunInputs) -> None:
    """Show what `trireme train` would do with this configuration."""
    console = Console()
    _print_settings(console, config)
    console.print(_processes(config))
    prompts = inputs.prompts
    console.print(
        f"{len(prompts.prompts)} prompts ({prompts.num_truncated} truncated, {prompts.num_dropped} dropped), "
        f"sequences of at most {inputs.max_length} tokens"
    )
    for name, held_out in inputs.held_out.items():
        of_suite = "" if name == MAIN else f" of the suite {name}"
        console.print(f"{len(held_out.prompts)} held-out prompts{of_suite}")
    first = prompts.prompts[0]
    console.print(f"first prompt, {len(first.token_ids)} tokens:")
    console.print(escape(visible(first.text)), style="cyan")
    console.print(f"reference: {escape(visible(str(dict(first.reference))))}")
    if config.demonstrations is not None:
        console.print(
            f"{len(inputs.demonstrations)} demonstrations, {config.demonstrations.rows_per_step} beside the rollouts "
            f"of each step at a coefficient of {config.demonstrations.coefficient:g}"
        )
        _print_stretches(console, "first demonstration", inputs.demonstrations[0], inputs.tokenizer)


def print_supervised_plan(config: SupervisedRunConfig, inputs: SupervisedInputs) -> None:
    """Show what `trireme sft` would do with this configuration, and which tokens it would learn."""
    console = Console()
    _print_settings(console, config)
    console.print(_table(rank_demands(config.learner, config.cluster)))
    demonstrations = inputs.demonstrations
    num_tokens = sum(len(demonstration.token_ids) for demonstration in demonstrations)
    num_learnt = sum(sum(demonstration.loss_mask) for demonstration in demonstrations)
    console.print(
        f"{len(demonstrations)} demonstrations of {num_tokens} tokens, {num_learnt} of them learnt; "
        f"sequences of at most {inputs.max_length} tokens"
    )
    _print_stretches(console, "first demonstration", demonstrations[0], inputs.tokenizer)


def print_preference_plan(config: PreferenceRunConfig, found: PreferenceExamples) -> None:
    """Show what `trireme prefer` would do with this configuration, and what it would learn of the first row."""
    console = Console()
    _print_settings(console, config)
    console.print(_table(rank_demands(config.learner, config.cluster)))
    tokenizer, max_length = load_tokenizer(config.model)
    left_out = "".join(f", {count} left out ({fault})" for fault, count in found.left_out.items())
    num_tokens = sum(len(sequence.token_ids) for example in found.training for sequence in example.completions)
    console.print(
        f"{len(found.training)} rows to learn, of {num_tokens} tokens; {len(found.validation)} for validation"
        f"{left_out}; sequences of at most {max_length} tokens"
    )
    first = found.training[0]
    names = {None: ("chosen", "rejected"), True: ("desirable",), False: ("undesirable",)}[first.desirable]
    for name, completion in zip(names, first.completions, strict=True):
        _print_stretches(console, f"row {first.row}, {name}", completion, tokenizer)


def _print_stretches(
    console: Console, name: str, demonstration: Demonstration, tokenizer: Any
) -> None:  # Any: transformers is untyped
    console.print(f"{name}, each stretch with its tokens:")
    for learnt, token_ids in stretches(demonstration):
        text = escape(repr(tokenizer.decode(token_ids)))
        console.print(f"{'learnt' if learnt else 'given':7}{len(token_ids):5}  {text}", style="green" if learnt else "")


def _print_settings(console: Console, config: TrainerRoot) -> None:
    console.print(escape(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)))


def _table(demands: Sequence[Demand]) -> Table:
    table = Table(title="Processes", title_justify="left")
    for column in ("process", "cores", "GPUs"):
        table.add_column(column)
    for demand in demands:
        table.add_row(demand.name, f"{demand.cpus:g}", f"{demand.gpus:g}")
    return table


def _processes(config: RunConfig) -> Table:
    table = _table(run_demands(config))
    for address in config.reward.addresses:
        table.add_row(f"reward server at {escape(address)} (not started by the run)", "", "")
    if config.reward.services:
        names = " + ".join(service.name for service in config.reward.services)
        table.add_row(f"reward server: {escape(names)}", "", "")
    return table
