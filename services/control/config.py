"""The root of the configuration: composes the sections, each of which lives beside its owner.

It must not hold a section's own defaults or rules. Invariant: a configuration that was built is valid on its own; what
only the machine, the model or the data can tell is checked by `preflight`.
"""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ppo_learner.config import LearnerConfig
from ppo_learner.preference_config import PreferenceConfig
from ppo_learner.reward_config import RewardModelConfig
from ppo_learner.supervised_config import SupervisedConfig
from reward_server.config import RewardConfig
from rollout_workers.config import RolloutConfig
from rollout_workers.preference_data import PreferenceDataConfig
from rollout_workers.prompts import DataConfig
from rollout_workers.reward_rows import RewardDataConfig
from services.contracts.settings import ModelConfig, Section
from services.control.alarms import AlarmsConfig
from services.control.autoscaler import AutoscaleConfig
from services.control.control_settings import ControlConfig
from services.control.evaluate_config import EvaluateConfig
from services.control.metrics import MetricsConfig


class RunSection(Section):
    """The run itself."""

    name: str = "run"
    """Title of the run, in the terminal and in the report."""
    dir: Path = Path("runs/run")
    """Folder that receives everything the run writes."""
    seed: int = 0
    """Seed of data order, sampling and initial weights."""


class TrainConfig(Section):
    """The loop: how long, how much at once, and when to save."""

    num_steps: int = Field(default=100, ge=1)
    """Learner steps of the whole run; a resumed run goes on to the same number."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts (RL), demonstrations (SFT), judged rows or preferences that one learner step consumes."""
    max_staleness: int = Field(default=0, ge=0)
    """How many versions a trained token may lag behind the learner. 0 is strictly on-policy: sampling and learning take
    turns. Above it they overlap, with (this + 1) · prompts_per_step prompts under way."""
    dynamic_sampling: bool = False
    """Put another prompt in the place of each whose completions all earned the same, which teaches a group baseline
    nothing: the dynamic sampling of DAPO. What was put aside is `filtered` in the ledger."""
    max_filtered_per_step: int | None = Field(default=None, ge=1)
    """Most prompts that dynamic_sampling replaces in one step; those above it are trained on as they are, so that a
    step always ends. By default three times prompts_per_step."""
    max_failed_prompts: int = Field(default=8, ge=0)
    """Prompts that may fail for good (a sample that the reward service refuses) before the run stops."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints; 0 saves only at the end and on Ctrl-C."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints to keep."""
    max_failed_checkpoints: int = Field(default=3, ge=1)
    """Checkpoints in a row that may fail, for a full disk, before the run stops; the last good one stays."""
    max_learner_restarts: int = Field(default=3, ge=0)
    """How often all learner ranks may be started anew from the last checkpoint after one of them was lost."""
    step_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait for one learner step, save, load or export, in seconds."""
    pulse_timeout_s: float = Field(default=20.0, gt=0)
    """Longest silence of a learner rank's process while it works, in seconds; then it is frozen or cut off, and all
    ranks start anew. A rank that answers and gets nowhere is known by step_timeout_s."""

    @property
    def most_filtered(self) -> int:
        """How many prompts a step may replace, the default resolved; 0 without dynamic sampling."""
        return (self.max_filtered_per_step or 3 * self.prompts_per_step) if self.dynamic_sampling else 0

    @model_validator(mode="after")
    def _filter_fits(self) -> Self:
        if self.max_filtered_per_step is not None and not self.dynamic_sampling:
            raise ValueError(
                f"max_filtered_per_step {self.max_filtered_per_step} has no effect without dynamic_sampling; set that "
                "to true, or remove it"
            )
        return self


class ValidationConfig(Section):
    """Which weights are kept."""

    every: int = Field(default=25, ge=1)
    """Steps between looks at the validation loss; the weights with the lowest are kept."""
    patience: int = Field(default=0, ge=0)
    """Looks in a row without a lower loss after which the run ends early; 0 goes on to the last step."""


class RewardModelEvaluateConfig(ValidationConfig):
    """Which weights of a reward model are kept, and what they are judged on."""

    examples: str | None = None
    """Data file or hub name with held-out rows, in the form that `data` describes; judged once, with the weights that
    are kept. None: the validation rows, by which those weights were chosen."""
    split: str = "test"
    """Split of a hub data set."""


class ClusterConfig(Section):
    """Where the processes run."""

    address: str | None = None
    """Address of an existing Ray cluster, or "auto" for this machine's; None starts Ray here for this run."""
    allow_unauthenticated: bool = False
    """Permit an existing cluster off this machine's loopback that asks for no token, although it runs anyone's code."""
    start_timeout_s: float = Field(default=180.0, gt=0)
    """Longest wait for the cluster to grant resources and for each process to be ready, in seconds."""
    cpus_per_learner_rank: int | None = Field(default=None, ge=1)
    """Cores, and so compute threads, of a learner rank; by default this machine's cores shared out to the ranks,
    less those of the workers where max_staleness lets both work at the same time, and at most OMP_NUM_THREADS where
    that is set and Ray is started here."""
    gpus_per_learner_rank: int = Field(default=0, ge=0, le=1)
    """1 places each learner rank on a GPU of its own; 0 trains on the CPU."""
    object_store_gib: float = Field(default=1.0, gt=0.1)
    """Shared memory for weights and rollouts when Ray is started here, in GiB."""


class DemonstrationsConfig(DataConfig):
    """Demonstrations that each learner step learns beside its rollouts, from rows in the form that `trireme sft` reads:
    the pretraining mix of PPO-ptx, supervised learning that gives way to RL, or a replay of earlier tasks."""

    rows_per_step: int = Field(default=64, ge=1)
    """Rows that a learner step learns, each in one of its updates."""
    coefficient: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """What the mean cross-entropy of their tokens is multiplied by, before it is added to the policy's loss."""
    rl_weight: Literal["one", "complement"] = "one"
    """What the policy's loss on its rollouts is multiplied by: 1, or 1 less the coefficient (complement), with which
    the two always count 1 together. The losses of a critic and of routers keep their own weights."""
    schedule: Literal["constant", "linear"] = "constant"
    """Course of the coefficient over the learner steps: constant, or linear to final_coefficient. At 0 the rows of a
    step are neither sent nor learnt."""
    final_coefficient: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """What a linear coefficient reaches after schedule_steps, and keeps."""
    schedule_steps: int | None = Field(default=None, ge=1)
    """Learner steps that a linear coefficient takes; by default all of the run."""

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        if not self.is_learnt:
            raise ValueError(
                "demonstrations need response_field, the column with the response to learn, messages_field, the one "
                "with whole conversations, or text_field, the one with whole texts"
            )
        if self.schedule == "constant":
            for name in ("final_coefficient", "schedule_steps"):
                if self.differs(name):
                    raise ValueError(f"{name} has no effect with schedule: constant; use linear, or remove it")
        if not self.coefficient and not self.final_coefficient:
            raise ValueError("coefficient 0 learns from no row; set it above 0, or leave the section out")
        return self

    @model_validator(mode="after")
    def _rewards_count(self) -> Self:
        last = self.coefficient if self.schedule == "constant" else self.final_coefficient
        highest, lowest = max(self.coefficient, last), min(self.coefficient, last)
        if self.rl_weight == "complement" and (highest > 1 or lowest == 1):
            raise ValueError(
                f"rl_weight: complement lets rewards count 1 less the coefficient, which goes from "
                f"{self.coefficient:g} to {last:g}; it may not pass 1, nor stay there: lower it, or use rl_weight: one"
            )
        return self


class WeightsConfig(Section):
    """How new weights reach the rollout workers."""

    transport: str = "shared_memory"
    """Name of a weight transport: shared_memory (Ray's object store; crosses nodes), disk (files, see folder), nccl
    (from GPU to GPU), or ipc (learner and worker on one GPU, see rollout.colocate)."""
    folder: Path | None = None
    """Folder of the disk transport, by an absolute path that the machines of learner and workers share; None takes the
    memory of one machine, /dev/shm."""


class SettingsRoot(BaseSettings):
    """The root of a command's configuration. Values come from the YAML file and the flags alone."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, nested_model_default_partial_update=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """No environment variable changes a run."""
        return (init_settings,)


class TrainerRoot(SettingsRoot):
    """What every trainer's configuration shares."""

    run: RunSection = RunSection()
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    metrics: MetricsConfig = MetricsConfig()
    cluster: ClusterConfig = ClusterConfig()


class GoldConfig(RewardConfig):
    """Where the reward that counts comes from; the settings are those of `reward`."""

    section: ClassVar[str] = "gold."


class RunConfig(TrainerRoot):
    """Everything `trireme train` and `trireme evaluate` can be told."""

    data: DataConfig
    # A factory, since a default would be merged with what is given, and hide that an algorithm's own settings are not.
    learner: LearnerConfig = Field(default_factory=LearnerConfig)
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig
    gold: GoldConfig | None = None
    """The reward that counts, where `reward` only stands for it: scored on the completions of each evaluation, never
    trained on. See `alarms`."""
    demonstrations: DemonstrationsConfig | None = None
    """Demonstrations that each learner step learns beside its rollouts; none where it is not given."""
    evaluate: EvaluateConfig = EvaluateConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    weights: WeightsConfig = WeightsConfig()
    control: ControlConfig = ControlConfig()
    autoscale: AutoscaleConfig = AutoscaleConfig()

    @model_validator(mode="after")
    def _what_is_filtered_teaches_nothing(self) -> Self:
        if not self.train.dynamic_sampling:
            return self
        if self.rollout.samples_per_prompt < 2:
            raise ValueError(
                "train.dynamic_sampling compares the completions of a prompt, and rollout.samples_per_prompt is "
                f"{self.rollout.samples_per_prompt}; set it to 2 or more"
            )
        if not self.learner.parts.compares_only_within_groups or self.learner.uses_steps:
            raise ValueError(
                f"train.dynamic_sampling leaves out groups whose totals are all the same, and learner.algorithm "
                f"{self.learner.algorithm} learns from them too, by steps or a baseline that is not the group's; use "
                "grpo or rloo, or set it to false"
            )
        return self

    @model_validator(mode="after")
    def _the_learner_can_do_without_waiting(self) -> Self:
        if self.autoscale.enabled and self.train.max_staleness == 0:
            raise ValueError(
                "autoscale.enabled looks at how long the learner waits, which it always does with max_staleness 0; "
                "set train.max_staleness to 1 or more, or change the number of workers with `trireme scale`"
            )
        return self

    @model_validator(mode="after")
    def _overlong_range_fits(self) -> Self:
        self.learner.for_length(self.rollout.max_completion_tokens)
        return self

    @model_validator(mode="after")
    def _each_update_has_demonstrations(self) -> Self:
        if self.demonstrations and self.demonstrations.rows_per_step < self.learner.updates_per_step:
            raise ValueError(
                f"demonstrations.rows_per_step {self.demonstrations.rows_per_step} is shared out to the "
                f"{self.learner.updates_per_step} updates of a step (learner.num_epochs · learner.num_minibatches); "
                "give each a row at least"
            )
        return self

    @model_validator(mode="after")
    def _what_is_watched_is_measured(self) -> Self:
        if self.gold is not None and not (self.evaluate.prompts and self.evaluate.every):
            raise ValueError("gold is measured in evaluations; set evaluate.prompts and evaluate.every")
        needs = {
            "divergence": (self.gold, "gold is not set"),
            "sign_flip": (self.gold, "gold is not set"),
            "kl": (self.learner.kl_coefficient, "learner.kl_coefficient is 0, with which the KL is not measured"),
        }
        for name, (given, fault) in needs.items():
            if not given and self.alarms.differs(name):
                raise ValueError(f"alarms.{name} would never be raised: {fault}")
        return self


class SupervisedRunConfig(TrainerRoot):
    """Everything `trireme sft` can be told."""

    data: DataConfig
    learner: SupervisedConfig = SupervisedConfig()


class RewardModelRunConfig(TrainerRoot):
    """Everything `trireme reward-model` can be told."""

    data: RewardDataConfig
    learner: RewardModelConfig = RewardModelConfig()
    evaluate: RewardModelEvaluateConfig = RewardModelEvaluateConfig()


class PreferenceRunConfig(TrainerRoot):
    """Everything `trireme prefer` can be told."""

    data: PreferenceDataConfig
    learner: PreferenceConfig = PreferenceConfig()
    evaluate: ValidationConfig = ValidationConfig()


SupervisedRoot = SupervisedRunConfig | RewardModelRunConfig | PreferenceRunConfig
"""The configuration of a trainer that learns from examples."""
