"""Which weights of a supervised run are its export: those of the lowest validation loss.

It must not know what is learnt. Invariants: whatever lies in the export's place is whole; without validation rows the
last weights are kept.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from services.control.config import ValidationConfig
from services.control.learner_group import Examples, LearnerGroup
from services.control.recorder import is_due
from services.control.run_state import RunState


class BestWeights:
    """Looks at the validation loss now and then, and keeps the weights that had the lowest.

    Args:
        settings: how often it looks, and when there is no use in going on.
        export: the folder that the weights are kept in.
        validation: the rows that are not learnt; may be none.
        num_steps: learner steps of the whole run.
    """

    def __init__(self, settings: ValidationConfig, *, export: Path, validation: Examples, num_steps: int) -> None:
        self._settings = settings
        self._export = export
        self._validation = validation
        self._num_steps = num_steps

    async def after_step(self, state: RunState, learner: LearnerGroup) -> tuple[RunState, Mapping[str, float]]:
        """The state with the best step so far, and the metrics of a look, where this step has one."""
        is_last = state.step == self._num_steps
        if not self._validation or not (is_last or is_due(state.step, self._settings.every)):
            return state, {}
        measured = await learner.evaluate(self._validation)
        if state.best_loss is None or measured["loss"] < state.best_loss:
            await self._keep(learner)
            state = replace(state, best_loss=measured["loss"], best_step=state.step)
        return state, {f"validation/{name}": value for name, value in measured.items()}

    def is_over(self, state: RunState) -> bool:
        """Whether the loss has not fallen for as many looks as patience goes."""
        patience = self._settings.patience * self._settings.every
        return 0 < patience <= state.step - state.best_step and state.best_loss is not None

    async def finish(self, state: RunState, learner: LearnerGroup) -> RunState:
        """Keep the last weights where none were looked at."""
        if state.best_loss is not None:
            return state
        await self._keep(learner)
        return replace(state, best_step=state.step)

    async def _keep(self, learner: LearnerGroup) -> None:
        """Put the present weights in the place of those kept so far."""
        new = self._export.with_name(".export.partial")
        shutil.rmtree(new, ignore_errors=True)
        await learner.export(new)
        shutil.rmtree(self._export, ignore_errors=True)
        new.rename(self._export)
