"""Checkpoints on disk against the ledger: the newest is whole, told of, and remembers the same counts.

It must not know how a checkpoint is written. Invariant: nothing of a checkpoint is believed before its hashes agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.contracts.errors import CheckpointError
from services.control import run_folder, run_state
from services.control.checks.findings import Findings
from services.control.checks.prompts import PromptChecks
from services.control.checks.tally import PROMPT_EVENTS, Tally
from services.control.run_state import RunState
from services.control.saved_groups import read_positions

_TRIES = 3
"""A live run deletes old checkpoints while they are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Newest:
    """The newest whole checkpoint.

    Attributes:
        open_positions: where the prompts that it has under way lie in the stream.
        faults: what is wrong with each newer one.
    """

    state: RunState
    open_positions: frozenset[int]
    faults: tuple[str, ...]


def check_checkpoints(
    folder: Path, tally: Tally, findings: Findings, *, may_be_untold: set[int] | None
) -> Newest | None:
    """I5; returns the newest whole checkpoint, if there is one.

    Args:
        may_be_untold: steps whose checkpoint event may be missing, for the process was killed between COMMIT and event;
            None: any step's.
    """
    checkpoints = folder / run_folder.CHECKPOINTS
    steps = [int(path.name.removeprefix("step_")) for path in run_state.committed(checkpoints)]
    if not steps and not tally.checkpoints:
        findings.skip("I5", "the run has no checkpoint yet")
        return None
    told, line = max(
        ((step, line) for step, (line, _) in tally.checkpoints.items()), key=lambda pair: pair[1], default=(0, 0)
    )
    if told not in steps and told > max(steps, default=-1):
        findings.add("I5", f"the checkpoint of step {told}, told of at line {line}, is not in {checkpoints}")
    if not steps:
        return None
    if may_be_untold is not None and steps[0] not in tally.checkpoints and steps[0] not in may_be_untold:
        findings.add("I5", f"no event tells of the newest checkpoint, step_{steps[0]}")
    try:
        newest = _newest(checkpoints)
    except CheckpointError as error:
        findings.add("I5", str(error))
        return None
    for fault in newest.faults:
        findings.add("I5", f"a newer checkpoint than that of step {newest.state.step} is damaged: {fault}")
    return newest


def check_books(newest: Newest, tally: Tally, prompts: PromptChecks, findings: Findings) -> None:
    """I1, and the counts of the ledger: what a run that resumes from the checkpoint would know."""
    _check_counts(newest.state, tally, findings)
    step, num_events = newest.state.step, newest.state.num_events
    opened = prompts.open_after(num_events)
    for position in sorted(opened.keys() - newest.open_positions):
        findings.add(
            "I1",
            f"prompt {opened[position]} was lost: it was open after {num_events} events, when the checkpoint of step "
            f"{step} was taken, which does not hold it",
        )
    for position in sorted(newest.open_positions - opened.keys()):
        findings.add(
            "I1",
            f"the checkpoint of step {step}, taken after {num_events} events, holds the prompt at position {position} "
            "of the stream, which was not open then: a resume would have it a second time",
        )


def _newest(checkpoints: Path) -> Newest:
    for _ in range(_TRIES - 1):
        try:
            return _read_newest(checkpoints)
        except FileNotFoundError:
            continue
    return _read_newest(checkpoints)


def _read_newest(checkpoints: Path) -> Newest:
    checkpoint, state, faults = run_state.newest(checkpoints)
    positions = (*state.running, *read_positions(checkpoint / run_state.WAITING_FILE))
    return Newest(state=state, open_positions=frozenset(positions), faults=tuple(faults))


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
