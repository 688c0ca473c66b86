"""What can be found wrong with a reward model's training before it starts: model, head, tokenizer, data, lengths.

It must not start a process. Invariant: as in `preflight`, what it returns is ready to be trained on.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from rollout_workers.reward_data import RewardExamples, load_reward_examples
from rollout_workers.reward_rows import RewardDataConfig
from services.contracts.errors import UserError
from services.control.config import RewardModelRunConfig
from services.control.light_transformers import transformers
from services.control.model_files import check_weights
from services.control.preflight import check_packages, load_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelInputs:
    """What a reward model is trained and judged on.

    Attributes:
        examples: rows to learn, and those for validation.
        held_out: rows that are judged once; None where the validation rows are all there is.
        tokenizer: the model's.
        max_tokens: longest text that the model is given.
    """

    examples: RewardExamples
    held_out: RewardExamples | None
    tokenizer: Any  # Any: transformers is untyped
    max_tokens: int


def check_reward_model(config: RewardModelRunConfig) -> RewardModelInputs:
    """Load tokenizer and judged completions.

    Raises:
        UserError: naming the value, the rule and the fix.
    """
    check_packages(config.learner)
    tokenizer, longest = load_tokenizer(config.model, ends_completions=False, reads_weights=False)
    _check_head(config)
    if not config.learner.from_scratch:
        scratch = ", or set learner.from_scratch to true to start from random ones"
        check_weights(config.model.path, "model.path", otherwise=scratch)
    longest = min(longest, tokenizer.model_max_length)
    max_tokens = config.data.max_tokens or longest
    if max_tokens > longest:
        raise UserError(f"data.max_tokens is {max_tokens}, and {config.model.path} takes at most {longest} tokens")
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {config.model.path} has no fast form, which tells where its tokens stand")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {config.model.path} has no token to fill texts up with; give it a pad_token")

    def load(data: RewardDataConfig) -> RewardExamples:
        return load_reward_examples(
            data,
            tokenizer,
            form=config.learner.parts.examples,
            any_label=config.learner.parts.loss == "squared_error",
            max_tokens=max_tokens,
            seed=config.run.seed,
        )

    held_out = config.evaluate.examples
    if held_out is None and not config.data.validation_share:
        raise UserError(
            "nothing would be left to judge the reward model by; set data.validation_share, or evaluate.examples"
        )
    changes = {"examples": held_out, "split": config.evaluate.split, "limit": None, "validation_share": 0.0}
    return RewardModelInputs(
        examples=load(config.data),
        held_out=load(config.data.model_copy(update=changes)) if held_out else None,
        tokenizer=tokenizer,
        max_tokens=max_tokens,
    )


def _check_head(config: RewardModelRunConfig) -> None:
    model = config.model
    # By its full name: in a process without torch the package itself does not give it.
    modeling_auto = importlib.import_module("transformers.models.auto.modeling_auto")
    known = {
        "outcome": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "process": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }[config.learner.parts.head]
    trust = {"trust_remote_code": model.trust_remote_code}
    shape = transformers().AutoConfig.from_pretrained(model.path, revision=model.revision, **trust)
    if shape.model_type not in known and not model.trust_remote_code:
        raise UserError(
            f"transformers has no {config.learner.parts.head} head for models of the kind {shape.model_type!r}; "
            "choose another model.path, or another learner.objective"
        )
