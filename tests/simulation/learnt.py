"""Whether a finished run learnt every step once and says so: from its learner, its newest checkpoint and its metrics.

It must not know how a run goes. Invariant: each prompt of each step is learnt once, and each step has one row.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.control import run_folder, run_state
from services.control.metrics import read_metrics
from tests.simulation.scenario import Scenario


def check_learnt(folder: Path, scenario: Scenario, samples_per_prompt: int) -> tuple[Any, Sequence[str]]:  # Any: JSON
    """The tokens that the learner was given, and what is wrong, in words."""
    checkpoint, state, _ = run_state.newest(folder / run_folder.CHECKPOINTS)
    learnt = json.loads((checkpoint / run_state.LEARNER_FOLDER / "state.json").read_text())
    wanted, wrong = scenario.num_steps * scenario.prompts_per_step, []
    if not len(learnt["prompts"]) == len(set(learnt["prompts"])) == wanted:
        wrong.append(f"the learner trained on {learnt['prompts']}, and {wanted} prompts were wanted")
    rows = [row.step for row in read_metrics(folder)]
    if rows != list(range(1, scenario.num_steps + 1)):
        wrong.append(f"there are rows for the steps {rows} of {scenario.num_steps}")
    if state.num_samples != wanted * samples_per_prompt and not state.event_counts.get("filtered"):
        wrong.append(f"{state.num_samples} samples were counted, and {wanted * samples_per_prompt} were learnt")
    return learnt["tokens"], wrong
