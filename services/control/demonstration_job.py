"""What a supervised run of a policy does beside its steps: it exports the last weights.

It must not know how a step is made.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from services.contracts.records import Demonstration, Json
from services.control import run_folder
from services.control.config import SupervisedRunConfig
from services.control.host import Named
from services.control.learner_group import LearnerGroup
from services.control.run_state import RunState

_ALONE = Named(path="ppo_learner.demonstrations:DemonstrationTask")
_WITH_TEACHER = Named(path="ppo_learner.distillation:DistillationTask")


class DemonstrationJob:
    """Implements `Job` for a policy, with a teacher beside it or without."""

    def __init__(self, config: SupervisedRunConfig, demonstrations: Sequence[Demonstration]) -> None:
        self.task = _WITH_TEACHER if config.learner.teacher else _ALONE
        self.examples = demonstrations
        self.shuffle = config.data.shuffle
        self._export: Path = config.run.dir / run_folder.EXPORT

    def num_tokens(self, example: Demonstration) -> int:
        return sum(example.loss_mask)

    async def before_steps(self, learner: LearnerGroup, tell: Callable[[str], None]) -> None:
        """The examples are all that there is to learn from."""

    async def after_step(self, state: RunState, learner: LearnerGroup) -> tuple[RunState, Mapping[str, float]]:
        return state, {}

    def is_over(self, state: RunState) -> bool:
        return False

    async def finish(self, state: RunState, learner: LearnerGroup) -> Mapping[str, Json]:
        await learner.export(self._export)
        return {}
