"""What `trireme evaluate` measures: one model on held-out prompts, or two on the same ones, compared prompt by prompt.

It must not know how a model was trained. Invariant: both models are found and given the same prompts before the first
engine starts.
"""

from dataclasses import dataclass

from services.contracts.errors import UserError
from services.contracts.records import Json
from services.control.config import RunConfig
from services.control.evaluate_config import MAIN
from services.control.parts import start_samplers
from services.control.preflight import RunInputs, check_run
from services.control.regression_gate import Comparison, compare
from services.control.suites import HeldOut, evaluate_all


class EvaluateRunConfig(RunConfig):
    """Everything `trireme evaluate` can be told."""

    against: str | None = None
    """A folder or hub name of the model before, such as the one that a run began with: it is measured too, and each
    gate of `evaluate` says how far `model` may be below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationInputs:
    """The prompts as each model's tokenizer makes them; `base` where there is a model before."""

    model: RunInputs
    base: RunInputs | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was found."""

    model: HeldOut
    base: HeldOut | None
    comparisons: list[Comparison]

    def to_row(self, config: EvaluateRunConfig) -> dict[str, Json]:
        """What `evaluation.json` says."""
        found = {name: _measured(self.model, name) for name in self.model.evaluations}
        row: dict[str, Json] = {"model": config.model.path, **found.pop(MAIN, {})}
        if found:
            row["suites"] = dict(found)
        if self.base is not None:
            row["against"] = config.against
            row["evaluations"] = [one.to_row() for one in self.comparisons]
        return row


def check_evaluation(config: EvaluateRunConfig) -> EvaluationInputs:
    """Load tokenizers and data.

    Raises:
        UserError: naming the value, the rule and the fix.
    """
    inputs = check_run(config)
    if not inputs.held_out:
        raise UserError(
            "evaluate.prompts names no data; give a file or hub name with held-out prompts, or evaluate.suites"
        )
    if config.against is None:
        return EvaluationInputs(model=inputs)
    base = check_run(_of_base(config))
    for name, held_out in inputs.held_out.items():
        rows, others = ([prompt.row for prompt in one.prompts] for one in (held_out, base.held_out[name]))
        if rows != others:
            raise UserError(
                f"evaluation {name} leaves other prompts out for their length with the tokenizer of {config.against} "
                f"than with that of {config.model.path}, and only the same can be compared; raise "
                "data.max_prompt_tokens, or set data.long_prompts to truncate"
            )
    return EvaluationInputs(model=inputs, base=base)


async def measure(config: EvaluateRunConfig, inputs: EvaluationInputs) -> Measured:
    """Every evaluation of the model, and of the one before where there is one."""
    base = None if inputs.base is None else await _measure(_of_base(config), inputs.base)
    model = await _measure(config, inputs.model)
    comparisons = compare(config.evaluate.by_name, base.scores, model.scores) if base else []
    return Measured(model=model, base=base, comparisons=comparisons)


async def _measure(config: RunConfig, inputs: RunInputs) -> HeldOut:
    async with start_samplers(config) as parts:
        return await evaluate_all(config, inputs, parts)


def _of_base(config: EvaluateRunConfig) -> RunConfig:
    return config.model_copy(
        update={"model": config.model.model_copy(update={"path": config.against, "revision": None})}
    )


def _measured(held_out: HeldOut, name: str) -> dict[str, Json]:
    evaluation = held_out.evaluations[name]
    metrics = {key.removeprefix(f"{MAIN}/"): round(value, 4) for key, value in evaluation.metrics().items()}
    return {"prompts": len(evaluation.completions), **metrics}
