"""What a run on preferences does beside its steps: reference logprobs before the first, the best weights as its export.

It must not know how a step is made, nor a loss. Invariant: what the summary says of validation rows is measured with
the export, read anew.
"""

from collections.abc import Callable, Mapping, Sequence

from rollout_workers.preference_data import PreferenceExamples
from services.contracts.preference_example import PreferenceExample
from services.contracts.records import Json
from services.contracts.settings import ModelConfig
from services.control import run_folder
from services.control.best_weights import BestWeights
from services.control.config import PreferenceRunConfig
from services.control.host import Named
from services.control.learner_group import LearnerGroup
from services.control.reference_logprobs import ReferenceLogprobs
from services.control.run_state import RunState


class PreferenceJob:
    """Implements `Job` for a policy that learns from preferences."""

    task = Named(path="ppo_learner.preference_training:PreferenceTask")

    def __init__(self, config: PreferenceRunConfig, found: PreferenceExamples) -> None:
        self.examples: Sequence[PreferenceExample] = found.training
        self.shuffle = config.data.shuffle
        self._validation: Sequence[PreferenceExample] = found.validation
        self._config = config
        self._left_out = found.left_out
        self._export = config.run.dir / run_folder.EXPORT
        rows = [*found.training, *found.validation]
        needs_reference = config.learner.parts.needs_reference
        self._reference = ReferenceLogprobs(config.run.dir, config.model, rows) if needs_reference else None
        self._best = self._keeper()

    def look(self) -> None:
        """Take up what an earlier start of the run left. Raises `UserError` where it does not belong to this run."""
        if self._reference is not None:
            self._reference.look()

    def num_tokens(self, example: PreferenceExample) -> int:
        return sum(sum(completion.loss_mask) for completion in example.completions)

    async def before_steps(self, learner: LearnerGroup, tell: Callable[[str], None]) -> None:
        if self._reference is None:
            return
        rows = await self._reference.complete(learner, rows_per_call=self._config.train.prompts_per_step, tell=tell)
        num_training = len(self.examples)
        self.examples, self._validation = rows[:num_training], rows[num_training:]
        self._best = self._keeper()

    async def after_step(self, state: RunState, learner: LearnerGroup) -> tuple[RunState, Mapping[str, float]]:
        return await self._best.after_step(state, learner)

    def is_over(self, state: RunState) -> bool:
        return self._best.is_over(state)

    async def finish(self, state: RunState, learner: LearnerGroup) -> Mapping[str, Json]:
        state = await self._best.finish(state, learner)
        measured: Mapping[str, float] = {}
        if self._validation:
            exported = ModelConfig(path=str(self._export), dtype=self._config.model.dtype)
            await learner.read(exported, self._config.learner)
            measured = await learner.evaluate(self._validation)
        rows: dict[str, Json] = {"learnt": len(self.examples), "validation": len(self._validation)}
        return {
            "accuracy_after": measured.get("accuracy"),
            "best_step": state.best_step,
            "validation": dict(measured),
            "rows": rows | dict(self._left_out),
        }

    def _keeper(self) -> BestWeights:
        return BestWeights(
            self._config.evaluate,
            export=self._export,
            validation=self._validation,
            num_steps=self._config.train.num_steps,
        )
