"""Everything that can be found wrong before anything expensive starts: model, tokenizer, data, lengths.

It must not start a process. Invariant: what it returns is ready to be trained on, so a fault in the user's input never
shows up after the cluster, the engines or the learner were started.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ppo_learner.config import LearnerConfig
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.sequence_shapes import unshareable
from ppo_learner.teacher_config import TeacherConfig
from reward_server.config import RewardConfig
from rollout_workers.demonstrations import load_demonstrations
from rollout_workers.dialogue_tokens import DialogueTokens
from rollout_workers.environments import load_environment
from rollout_workers.prompts import DataConfig, PromptSet, load_prompts
from services.contracts.errors import UserError
from services.contracts.records import Demonstration, RewardDescription
from services.contracts.settings import ModelConfig
from services.control.config import RunConfig, SupervisedRunConfig
from services.control.evaluate_config import HeldOutConfig, SuiteConfig
from services.control.light_transformers import transformers
from services.control.model_files import check_folder, check_weights
from services.transport import secret_files
from services.transport.transports import DEVICE_TRANSPORTS, TRANSPORTS, transport_names


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInputs:
    """What a run trains on, and the longest sequence (tokens) that its model takes.

    Attributes:
        held_out: the prompts of every evaluation, by its name.
        demonstrations: those beside the rollouts.
    """

    prompts: PromptSet
    held_out: Mapping[str, PromptSet] = field(default_factory=dict)
    max_length: int
    tokenizer: Any  # Any: transformers is untyped
    demonstrations: tuple[Demonstration, ...] = ()

    def decode(self, token_ids: list[int]) -> str:
        """The text of some tokens as rollout workers make it: without special ones."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedInputs:
    """What a supervised run learns, the longest sequence (tokens) that its model takes, and the tokenizer."""

    demonstrations: tuple[Demonstration, ...]
    max_length: int
    tokenizer: Any  # Any: transformers is untyped


def check_training(config: RunConfig) -> RunInputs:
    """Load tokenizer and data of a run that trains. Raises `UserError` as `check_run`."""
    algorithm, size = config.learner.algorithm, config.rollout.samples_per_prompt
    if config.learner.parts.compares_within_groups and size < 2:
        raise UserError(
            f"learner.algorithm {algorithm} compares the completions of a prompt, and rollout.samples_per_prompt is "
            f"{size}; set it to 2 or more, or use ppo"
        )
    return check_run(config)


def check_run(config: RunConfig) -> RunInputs:
    """Load tokenizer and data of an RL run or an evaluation.

    Raises:
        UserError: naming the value, the rule and the fix.
    """
    _check_transport(config)
    _check_security(config)
    check_packages(config.learner)
    tokenizer, max_length = load_tokenizer(config.model, num_sharing=config.learner.sequence_parallel)
    _check_environment(config, tokenizer)
    own = config.rollout.max_completion_tokens
    room = _room(config, max_length, own, "rollout.max_completion_tokens")
    held_out = {}
    for name, settings in config.evaluate.by_name.items():
        own_room = _room(
            config, max_length, settings.max_completion_tokens or own, f"max_completion_tokens of the evaluation {name}"
        )
        data = _evaluation_data(config.data, settings)
        held_out[name] = load_prompts(data, tokenizer, max_prompt_tokens=own_room)
    return RunInputs(
        prompts=load_prompts(config.data, tokenizer, max_prompt_tokens=room),
        held_out=held_out,
        max_length=max_length,
        tokenizer=tokenizer,
        demonstrations=_demonstrations_beside(config, tokenizer, max_length),
    )


def check_supervised(config: SupervisedRunConfig) -> SupervisedInputs:
    """Load tokenizer and demonstrations of a supervised run. Raises `UserError` likewise."""
    check_packages(config.learner)
    tokenizer, max_length = load_tokenizer(config.model, num_sharing=config.learner.sequence_parallel)
    demonstrations = load_demonstrations(config.data, tokenizer, max_length=max_length)
    if config.learner.teacher is not None:
        longest = max(len(demonstration.token_ids) for demonstration in demonstrations)
        _check_teacher(config.learner.teacher, config.model, tokenizer, longest)
    return SupervisedInputs(demonstrations=demonstrations, max_length=max_length, tokenizer=tokenizer)


def check_packages(learner: OptimizerConfig) -> None:
    """Raise `UserError` when the learner's settings need a package that is not installed."""
    for package, setting in learner.packages.items():
        if find_spec(package) is None:
            raise UserError(
                f"{setting} needs the package {package}, which is not installed: pip install {package}, or use another "
                "value"
            )


def load_tokenizer(
    model: ModelConfig,
    *,
    ends_completions: bool = True,
    num_sharing: int = 1,
    setting: str = "model.path",
    reads_weights: bool = True,
) -> tuple[Any, int]:  # Any: transformers is untyped
    """The tokenizer, and the longest sequence that the model takes.

    Args:
        ends_completions: the model generates, so there must be a token that ends it.
        num_sharing: how many ranks are to share each sequence.
        setting: what names the model, for errors.
        reads_weights: its weights are to be read as well, so a folder must have all of them.

    Raises:
        UserError: when model or tokenizer cannot be found, or do not fit each other.
    """
    check_folder(model.path, setting)
    if reads_weights:
        check_weights(model.path, setting)
    name = model.tokenizer or model.path
    trust = {"trust_remote_code": model.trust_remote_code}
    try:
        config = transformers().AutoConfig.from_pretrained(model.path, revision=model.revision, **trust)
        revision = None if model.tokenizer else model.revision
        tokenizer = transformers().AutoTokenizer.from_pretrained(name, revision=revision, **trust)
    except (OSError, ValueError) as error:
        raise UserError(f"model {model.path!r} with tokenizer {name!r} cannot be loaded: {error}") from error
    if num_sharing > 1 and (problem := unshareable(config, num_sharing)):
        raise UserError(f"learner.sequence_parallel is {num_sharing}, which does not fit {model.path!r}: {problem}")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"tokenizer {name!r} has {len(tokenizer)} tokens and model {model.path!r} has room for "
            f"{config.vocab_size}; set model.tokenizer to the one that the model was trained with"
        )
    if ends_completions and tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {name!r} has no end-of-sequence token, so no completion could end")
    longest = int(getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length)
    if model.max_length is not None and model.max_length > longest:
        raise UserError(f"model.max_length is {model.max_length}, and {model.path} takes at most {longest} tokens")
    return tokenizer, model.max_length or longest


def _check_environment(config: RunConfig, tokenizer: Any) -> None:  # Any: transformers is untyped
    """The environment loads, and the chat template has room for its answers."""
    settings = config.rollout.environment
    if settings is None:
        return
    load_environment(settings)
    tokens = DialogueTokens(tokenizer, settings.role)
    tokens.answer("an answer", in_chat=config.data.template == "chat", after=tokenizer.eos_token_id)


def _demonstrations_beside(
    config: RunConfig, tokenizer: Any, max_length: int
) -> tuple[Demonstration, ...]:  # Any: transformers is untyped
    """What the section `demonstrations` names, each with a token to learn; nothing where there is no such section."""
    data = config.demonstrations
    if data is None:
        return ()
    try:
        demonstrations = load_demonstrations(data, tokenizer, max_length=max_length)
    except UserError as error:
        raise UserError(f"section demonstrations, whose settings are called as those of data: {error}") from error
    for number, demonstration in enumerate(demonstrations):
        if not any(demonstration.loss_mask[1:]):
            raise UserError(f"section demonstrations: {data.prompts}, row {number} has no token to learn; leave it out")
    return demonstrations


def first_differing_token(tokenizer: Any, other: Any) -> str | None:  # Any: transformers is untyped
    """A token that has another number in the other one, or ends sequences in one of them only; None: they agree."""
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    differing = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    if differing:
        return str(min(differing))
    return None if tokenizer.eos_token_id == other.eos_token_id else str(tokenizer.eos_token)


def _check_teacher(
    teacher: TeacherConfig, model: ModelConfig, tokenizer: Any, longest: int
) -> None:  # Any: transformers is untyped
    """The teacher can be loaded, means the same by every token, and takes the longest demonstration."""
    changes = {"path": teacher.path, "revision": teacher.revision, "tokenizer": None, "max_length": None}
    other, max_length = load_tokenizer(model.model_copy(update=changes), setting="learner.teacher.path")
    token = first_differing_token(tokenizer, other)
    if token is not None:
        raise UserError(
            f"learner.teacher.path {teacher.path!r} has another tokenizer than model.path {model.path!r} (token "
            f"{token!r} is number {other.get_vocab().get(token)} there and {tokenizer.get_vocab().get(token)} here), "
            "and distributions are "
            "compared token by token; take a teacher of the same family, or learn its answers instead: `trireme "
            "sample` with the teacher as model.path, then `trireme sft` on what it wrote"
        )
    if longest > max_length:
        raise UserError(
            f"the longest demonstration has {longest} tokens, and learner.teacher.path {teacher.path!r} takes at most "
            f"{max_length}; leave long rows out, or take another teacher"
        )


def _room(config: RunConfig, max_length: int, completion_tokens: int, setting: str) -> int:
    """The tokens that are left for a prompt."""
    if completion_tokens >= max_length:
        raise UserError(
            f"{setting} is {completion_tokens} and {config.model.path} takes sequences of at most "
            f"{max_length} tokens, which leaves none for the prompt"
        )
    return max_length - completion_tokens


def _evaluation_data(training: DataConfig, settings: HeldOutConfig) -> DataConfig:
    """The held-out data set: a suite's own, or in the form of the training data."""
    if isinstance(settings, SuiteConfig) and settings.data is not None:
        return settings.data
    changes = {"prompts": settings.prompts, "split": settings.split, "limit": settings.limit}
    return training.model_copy(update=changes)


def _check_security(config: RunConfig) -> None:
    """Every file of certificates, keys and tokens can be used."""
    secret_files.server_material(config.control, section="control.")
    for section, reward in rewards_by_section(config).items():
        secret_files.client_material(reward, section=f"{section}.")
        secret_files.tokens(reward, section=f"{section}.")
        secret_files.server_material(reward.server, section=f"{section}.server.")
        secret_files.tokens(reward.server, section=f"{section}.server.")


def rewards_by_section(config: RunConfig) -> dict[str, RewardConfig]:
    """The reward that trains, the gold one and those of suites, as far as there are."""
    of_suites = {f"evaluate.suites {suite.name}: reward": suite.reward for suite in config.evaluate.suites}
    sections = {"reward": config.reward, "gold": config.gold, **of_suites}
    return {section: reward for section, reward in sections.items() if reward is not None}


def _check_transport(config: RunConfig) -> None:
    name = config.weights.transport
    if name not in transport_names():
        raise UserError(f"weights.transport is {name!r}; there are {', '.join(transport_names())}")
    if config.weights.folder is not None and (name != "disk" or not config.weights.folder.is_absolute()):
        raise UserError(
            f"weights.folder is {config.weights.folder}, and weights.transport {name}; it is of the transport disk "
            "alone, and an absolute path: set weights.transport to disk, or leave it out"
        )
    on_gpus = config.rollout.gpus_per_worker, config.cluster.gpus_per_learner_rank
    if name in DEVICE_TRANSPORTS and not all(on_gpus):
        raise UserError(
            f"weights.transport is {name}, which goes from GPU to GPU, and rollout.gpus_per_worker is {on_gpus[0]}, "
            f"cluster.gpus_per_learner_rank {on_gpus[1]}; give both GPUs, or choose one of {', '.join(TRANSPORTS)}"
        )
    if config.rollout.colocate:
        _check_colocation(config)
    elif name == "ipc":
        raise UserError(
            "weights.transport is ipc, which needs learner and worker on one GPU, and rollout.colocate is false; set "
            "that to true, or choose nccl"
        )


def _check_colocation(config: RunConfig) -> None:
    """One worker and one rank share a GPU, and only one of them computes at a time."""
    rules: dict[str, tuple[object, object]] = {
        "learner.num_ranks": (config.learner.num_ranks, 1),
        "cluster.gpus_per_learner_rank": (config.cluster.gpus_per_learner_rank, 1),
        "train.max_staleness": (config.train.max_staleness, 0),
    }
    for name, (found, needed) in rules.items():
        if found != needed:
            raise UserError(
                f"rollout.colocate has worker and learner take turns on one GPU, and {name} is {found}; set it to "
                f"{needed}, or rollout.colocate to false"
            )
    if config.weights.transport == "nccl":
        raise UserError(
            "rollout.colocate puts learner and worker on one GPU, and NCCL takes one process of each GPU; set "
            "weights.transport to ipc or shared_memory"
        )


def refuse_reward_without_steps(learner: LearnerConfig, reward: RewardDescription) -> None:
    """Raises `UserError` where steps count and the reward says that it scores none."""
    if learner.uses_steps and reward.gives_steps is False:
        raise UserError(
            f"learner.algorithm {learner.algorithm} learns from rewards for steps (learner.step_weight is "
            f"{learner.step_weight:g}), and the reward {reward.name} says that it gives none (gives_steps); use a "
            "reward that gives steps, or an algorithm and weights that learn from totals alone"
        )
