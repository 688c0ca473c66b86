"""The commands that can be a stage of a pipeline: a command is one line of `STAGE_COMMANDS`.

It must not know how stages follow one another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_settings import BaseSettings

from services.control import run_folder
from services.control.averaging import AverageConfig, check_average
from services.control.config import PreferenceRunConfig, RewardModelRunConfig, RunConfig, SupervisedRunConfig
from services.control.evaluation_job import EvaluateRunConfig, check_evaluation
from services.control.pair_labels import LabelConfig
from services.control.preference_preflight import check_preferences
from services.control.preflight import check_run, check_supervised, check_training
from services.control.revisions import ReviseConfig
from services.control.reward_model_preflight import check_reward_model
from services.control.reward_preflight import check_reward_services
from services.control.sample_config import SampleRunConfig
from services.control.step_label_job import StepLabelsRunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCommand:
    """What a pipeline must know of a command.

    Attributes:
        config: its configuration; the pipeline sets run.dir in it.
        outputs: what it leaves in run.dir for later stages.
        check: finds what is wrong before anything starts, from the configuration; None where nothing can be told.
        resumes: a run that was begun goes on with --resume; any other command is simply started again.
        keeps_rows: started again, it goes on behind the rows that it has, which it does not make anew.
        keeps_model: `export` has tokenizer, shape and length of model.path.
        summary: file in run.dir with what it found.
    """

    config: type[BaseSettings]
    outputs: tuple[str, ...]
    check: Callable[[Any], object] | None = None  # Any: its own configuration
    resumes: bool = False
    keeps_rows: bool = False
    keeps_model: bool = False
    summary: str = run_folder.SUMMARY_FILE


def _with_rewards(check: Callable[[Any], object]) -> Callable[[Any], None]:  # Any: as in `StageCommand`
    """`check`, and then whether the rewards load."""

    def both(config: Any) -> None:  # Any: ditto
        check(config)
        check_reward_services(config)

    return both


def _check_sampling(config: SampleRunConfig) -> None:
    check_run(config)
    if config.select is not None:  # Else no reward is asked.
        check_reward_services(config)


STAGE_COMMANDS = {
    "sft": StageCommand(
        config=SupervisedRunConfig, check=check_supervised, outputs=("export",), resumes=True, keeps_model=True
    ),
    "prefer": StageCommand(
        config=PreferenceRunConfig, check=check_preferences, outputs=("export",), resumes=True, keeps_model=True
    ),
    "train": StageCommand(
        config=RunConfig,
        check=_with_rewards(check_training),
        outputs=("export", "samples.jsonl"),
        resumes=True,
        keeps_model=True,
    ),
    "sample": StageCommand(
        config=SampleRunConfig, check=_check_sampling, outputs=("completions.jsonl", "demonstrations.jsonl")
    ),
    "reward-model": StageCommand(
        config=RewardModelRunConfig, check=check_reward_model, outputs=("export",), resumes=True
    ),
    "label-pairs": StageCommand(config=LabelConfig, outputs=("preferences.jsonl",)),
    "revise": StageCommand(config=ReviseConfig, outputs=("demonstrations.jsonl", "preferences.jsonl")),
    "label-steps": StageCommand(
        config=StepLabelsRunConfig, check=_with_rewards(check_run), outputs=("step_labels.jsonl",), keeps_rows=True
    ),
    "average": StageCommand(config=AverageConfig, check=check_average, outputs=("export",)),
    "evaluate": StageCommand(
        config=EvaluateRunConfig,
        check=_with_rewards(check_evaluation),
        outputs=(run_folder.EVALUATION_FILE,),
        summary=run_folder.EVALUATION_FILE,
    ),
}
