"""Everything that can be found wrong before anything expensive starts: model, tokenizer, data, lengths.

It must not start a process. Invariant: what it returns is ready to be trained on, so a fault in the user's input never
shows up after the cluster, the engines or the learner were started.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ppo_learner.config import LearnerConfig
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.teacher_config import TeacherConfig
from rollout_workers.demonstrations import load_demonstrations
from rollout_workers.prompts import DataConfig, PromptSet, load_prompts
from services.contracts.errors import UserError
from services.contracts.records import Demonstration, RewardDescription
from services.contracts.settings import ModelConfig
from services.control.config import RunConfig, SupervisedRunConfig
from services.transport import secret_files


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInputs:
    """What a run trains and evaluates on, the longest sequence (tokens) that its model takes, the tokenizer, and the
    demonstrations beside the rollouts."""

    prompts: PromptSet
    evaluation_prompts: PromptSet | None
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


def check_run(config: RunConfig) -> RunInputs:
    """Load tokenizer and data of an RL run or an evaluation.

    Raises:
        UserError: naming the value, the rule and the fix.
    """
    _check_transport(config)
    _check_security(config)
    check_packages(config.learner)
    tokenizer, max_length = load_tokenizer(config.model)
    room = max_length - config.rollout.max_completion_tokens
    if room < 1:
        raise UserError(
            f"rollout.max_completion_tokens is {config.rollout.max_completion_tokens} and {config.model.path} takes "
            f"sequences of at most {max_length} tokens, which leaves none for the prompt"
        )
    held_out = evaluation_data(config)
    return RunInputs(
        prompts=load_prompts(config.data, tokenizer, max_prompt_tokens=room),
        evaluation_prompts=load_prompts(held_out, tokenizer, max_prompt_tokens=room) if held_out else None,
        max_length=max_length,
        tokenizer=tokenizer,
        demonstrations=_demonstrations_beside(config, tokenizer, max_length),
    )


def check_supervised(config: SupervisedRunConfig) -> SupervisedInputs:
    """Load tokenizer and demonstrations of a supervised run. Raises `UserError` likewise."""
    check_packages(config.learner)
    tokenizer, max_length = load_tokenizer(config.model)
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


def evaluation_data(config: RunConfig) -> DataConfig | None:
    """The held-out data set in the form of the training data, or None when the run has none."""
    if config.evaluate.prompts is None:
        return None
    changes = {"prompts": config.evaluate.prompts, "split": config.evaluate.split, "limit": config.evaluate.limit}
    return config.data.model_copy(update=changes)


def load_tokenizer(
    model: ModelConfig, *, ends_completions: bool = True, setting: str = "model.path"
) -> tuple[Any, int]:  # Any: transformers is untyped
    """The tokenizer, and the longest sequence that the model takes.

    Args:
        ends_completions: the model generates, so there must be a token that ends it.
        setting: what names the model, for errors.

    Raises:
        UserError: when model or tokenizer cannot be found, or do not fit each other.
    """
    from transformers import AutoConfig, AutoTokenizer

    _refuse_missing_folder(model.path, setting)
    name = model.tokenizer or model.path
    trust = {"trust_remote_code": model.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(model.path, revision=model.revision, **trust)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=None if model.tokenizer else model.revision, **trust)
    except (OSError, ValueError) as error:
        raise UserError(f"model {model.path!r} with tokenizer {name!r} cannot be loaded: {error}") from error
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


def _check_teacher(
    teacher: TeacherConfig, model: ModelConfig, tokenizer: Any, longest: int
) -> None:  # Any: transformers is untyped
    """The teacher can be loaded, means the same by every token, and takes the longest demonstration."""
    changes = {"path": teacher.path, "revision": teacher.revision, "tokenizer": None, "max_length": None}
    other, max_length = load_tokenizer(model.model_copy(update=changes), setting="learner.teacher.path")
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    token = next((token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)), None)
    if token is not None or tokenizer.eos_token_id != other.eos_token_id:
        token = tokenizer.eos_token if token is None else token
        raise UserError(
            f"learner.teacher.path {teacher.path!r} has another tokenizer than model.path {model.path!r} (token "
            f"{token!r} is number {theirs.get(token)} there and {ours.get(token)} here), and distributions are "
            "compared token by token; take a teacher of the same family, or learn its answers instead: `trireme "
            "sample` with the teacher as model.path, then `trireme sft` on what it wrote"
        )
    if longest > max_length:
        raise UserError(
            f"the longest demonstration has {longest} tokens, and learner.teacher.path {teacher.path!r} takes at most "
            f"{max_length}; leave long rows out, or take another teacher"
        )


def _refuse_missing_folder(path: str, setting: str) -> None:
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") != 1
    if looks_local and not (Path(path) / "config.json").is_file():
        raise UserError(
            f"{setting} {path!r} is no folder with a config.json; give a folder in Hugging Face format, or a hub name"
        )


def _check_security(config: RunConfig) -> None:
    """Every file of certificates, keys and tokens can be used."""
    secret_files.server_material(config.control, section="control.")
    secret_files.client_material(config.reward, section="reward.")
    secret_files.tokens(config.reward, section="reward.")
    secret_files.server_material(config.reward.server, section="reward.server.")
    secret_files.tokens(config.reward.server, section="reward.server.")


def _check_transport(config: RunConfig) -> None:
    from services.transport.device_weights import DEVICE_TRANSPORTS, transport_names
    from services.transport.weights import TRANSPORTS

    name = config.weights.transport
    if name not in transport_names():
        raise UserError(f"weights.transport is {name!r}; there are {', '.join(transport_names())}")
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
