"""What a reward model's run does beside its steps: it keeps the weights of lowest validation loss, and judges them.

It must not know how a step is made, nor how a reward model is served. Invariants: what is judged is the export, read
anew; the card is written last, so a folder with a card is whole; held-out rows decide nothing.
"""

import json
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev

from reward_server.reward_models.reading import normalised, read_sample
from services.contracts.errors import TriremeError
from services.contracts.records import Json, RewardSample
from services.contracts.reward_example import RewardExample
from services.contracts.reward_model import CanarySample, RewardModelCard, write_canary, write_card
from services.contracts.settings import ModelConfig
from services.control import run_folder
from services.control.best_weights import BestWeights
from services.control.config import RewardModelRunConfig
from services.control.host import Named
from services.control.learner_group import LearnerGroup
from services.control.reward_evaluation import compare, judge_comparisons, judge_labels, judge_ratings, longer_is_better
from services.control.reward_model_preflight import RewardModelInputs
from services.control.run_state import RunState
from services.control.weights_digest import weights_digest

SPLIT_FILE = "split.json"
_MOST_FOR_STATISTICS = 4096
"""Training rows whose scores give the mean and deviation by which served scores are normalised."""
_CANARY = (
    ("What is 17 + 25?", " 17 + 25 = 42.\nThe answer is 42."),
    ("Name three colours.", " Red, green and blue."),
    ("\n\nHuman: Can you help me?\n\nAssistant:", " Of course! What is it about?"),
    ("", "No."),
)


class RewardModelJob:
    """Implements `Job` for a reward model."""

    task = Named(path="ppo_learner.reward_training:RewardModelTask")

    def __init__(self, config: RewardModelRunConfig, inputs: RewardModelInputs) -> None:
        self.examples: Sequence[RewardExample] = inputs.examples.training
        self.shuffle = config.data.shuffle
        self._config = config
        self._inputs = inputs
        self._export = config.run.dir / run_folder.EXPORT
        self._best = BestWeights(
            config.evaluate,
            export=self._export,
            validation=inputs.examples.validation,
            num_steps=config.train.num_steps,
        )

    def num_tokens(self, example: RewardExample) -> int:
        return sum(map(len, example.sequences))

    def write_split(self) -> None:
        """Write down which rows are not learnt, and what decided it."""
        data = self._config.data
        split = {
            "examples": data.examples,
            "seed": self._config.run.seed,
            "validation_share": data.validation_share,
            "validation_rows": [example.row for example in self._inputs.examples.validation],
            "held_out": self._config.evaluate.examples,
        }
        (self._config.run.dir / SPLIT_FILE).write_text(json.dumps(split) + "\n")

    async def before_steps(self, learner: LearnerGroup, tell: Callable[[str], None]) -> None:
        """The examples are all that there is to learn from."""

    async def after_step(self, state: RunState, learner: LearnerGroup) -> tuple[RunState, Mapping[str, float]]:
        return await self._best.after_step(state, learner)

    def is_over(self, state: RunState) -> bool:
        return self._best.is_over(state)

    async def finish(self, state: RunState, learner: LearnerGroup) -> Mapping[str, Json]:
        state = await self._best.finish(state, learner)
        settings = self._config.learner.model_copy(update={"from_scratch": False})
        await learner.read(ModelConfig(path=str(self._export), dtype=self._config.model.dtype), settings)
        card = await self._card(learner)
        evaluation = await self._judge(learner)
        write_canary(self._export, await self._canary(learner, card))
        write_card(self._export, card)
        examples = self._inputs.examples
        return {
            "accuracy_after": evaluation.get("accuracy"),
            "best_step": state.best_step,
            "validation_loss": state.best_loss,
            "evaluation": evaluation,
            "reward_model": card.model_dump(),
            "rows": {
                "learnt": len(examples.training),
                "validation": len(examples.validation),
                "too_long": examples.num_too_long,
                "nothing_to_learn": examples.num_empty,
            },
            "num_truncated": examples.num_truncated,
        }

    async def _card(self, learner: LearnerGroup) -> RewardModelCard:
        scores = await learner.answers(self.examples[:_MOST_FOR_STATISTICS])
        spread = pstdev(scores)
        if not math.isfinite(spread) or spread == 0:
            raise TriremeError(
                f"the reward model gives all training rows scores of spread {spread}, so it has learnt nothing; "
                "raise learner.lr or train.num_steps, or lower them where the loss is not finite"
            )
        data = self._config.data
        return RewardModelCard(
            head=self._config.learner.parts.head,
            version=self._config.learner.version or weights_digest(self._export),
            mean=fmean(scores),
            std=spread,
            template=data.template,
            max_tokens=self._inputs.max_tokens,
            step_separator=data.step_separator,
        )

    async def _judge(self, learner: LearnerGroup) -> dict[str, Json]:
        held_out = self._inputs.held_out
        examples = held_out.training if held_out else self._inputs.examples.validation
        scores = await learner.answers(examples)
        judged_on: dict[str, Json] = {"judged_on": self._config.evaluate.examples or "validation rows"}
        objective = self._config.learner.parts
        if objective.compares:
            prefer_longer = longer_is_better(self.examples)
            return judged_on | judge_comparisons(compare(examples, scores), prefer_longer=prefer_longer)
        judge = judge_ratings if objective.loss == "squared_error" else judge_labels
        return judged_on | judge(_labels(examples), scores, len(examples), _labels(self.examples))

    async def _canary(self, learner: LearnerGroup, card: RewardModelCard) -> list[CanarySample]:
        """A few fixed texts with their scores, which whoever serves the model must find again."""
        samples = [RewardSample(id="", prompt=prompt, completion=completion) for prompt, completion in _CANARY]
        readings = [read_sample(self._inputs.tokenizer, card, sample) for sample in samples]
        written = []
        for sample, reading in zip(samples, readings, strict=True):
            example = RewardExample(
                row=0,
                sequences=(reading.token_ids,),
                positions=array("i", reading.positions),
                targets=(0.0,) * (len(reading.positions) or 1),
                completion_lengths=(len(sample.completion),),
            )
            scores = normalised(card, await learner.answers([example])) if reading.token_ids else ()
            written.append(CanarySample(prompt=sample.prompt, completion=sample.completion, scores=tuple(scores)))
        return written


def _labels(examples: Sequence[RewardExample]) -> list[float]:
    return [target for example in examples for target in example.targets]
