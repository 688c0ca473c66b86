"""Checkpoints on disk against the ledger: the newest is whole, told of, and remembers the same counts.

It must not know how a checkpoint is written. Invariant: nothing of a checkpoint is believed before its hashes agree.
"""

from collections.abc import Mapping
from pathlib import Path

from services.contracts.errors import CheckpointError
from services.control import run_folder, run_state
from services.control.checks.findings import Findings
from services.control.checks.tally import PROMPT_EVENTS, Tally
from services.control.run_state import RunState

_TRIES = 3
"""A live run deletes old checkpoints while they are read."""


def check_checkpoints(folder: Path, tally: Tally, findings: Findings, *, may_be_untold: set[int] | None) -> None:
    """I5, and the counts of the ledger.

    Args:
        may_be_untold: steps whose checkpoint event may be missing, for the process was killed between COMMIT and event;
            None: any step's.
    """
    checkpoints = folder / run_folder.CHECKPOINTS
    steps = [int(path.name.removeprefix("step_")) for path in run_state.committed(checkpoints)]
    if not steps and not tally.checkpoints:
        findings.skip("I5", "the run has no checkpoint yet")
        return
    told, line = max(
        ((step, line) for step, (line, _) in tally.checkpoints.items()), key=lambda pair: pair[1], default=(0, 0)
    )
    if told not in steps and told > max(steps, default=-1):
        findings.add("I5", f"the checkpoint of step {told}, told of at line {line}, is not in {checkpoints}")
    if not steps:
        return
    if may_be_untold is not None and steps[0] not in tally.checkpoints and steps[0] not in may_be_untold:
        findings.add("I5", f"no event tells of the newest checkpoint, step_{steps[0]}")
    try:
        _, state, faults = _newest(checkpoints)
    except CheckpointError as error:
        findings.add("I5", str(error))
        return
    for fault in faults:
        findings.add("I5", f"a newer checkpoint than that of step {state.step} is damaged: {fault}")
    _check_counts(state, tally, findings)


def _newest(checkpoints: Path) -> tuple[Path, RunState, list[str]]:
    for _ in range(_TRIES - 1):
        try:
            return run_state.newest(checkpoints)
        except FileNotFoundError:
            continue
    return run_state.newest(checkpoints)


def _check_counts(state: RunState, tally: Tally, findings: Findings) -> None:
    """What the checkpoint counted lies between the counts after its step and those at its event."""
    nothing: Mapping[str, int] = {}
    least = tally.after_step.get(state.step, nothing)
    line, most = tally.checkpoints.get(state.step, (0, tally.prompts))
    for name in PROMPT_EVENTS:
        counted, low, high = state.event_counts.get(name, 0), least.get(name, 0), most.get(name, 0)
        if name == "trained":
            high = low
        if not low <= counted <= high:
            where = f" (line {line})" if line else ""
            wanted = str(low) if low == high else f"{low} to {high}"
            findings.add(
                "ledger",
                f"the checkpoint of step {state.step}{where} counts {counted} prompts {name}, and the ledger {wanted}",
            )
