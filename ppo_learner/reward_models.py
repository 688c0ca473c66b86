"""The network of a reward model: a Hugging Face classifier with one label, for whole texts or for single tokens.

It must not know losses, ranks or DeepSpeed. Invariant: what it scores is the logit that the exported folder gives when
transformers loads it, so that whoever serves the folder gives the same score.
"""

from typing import Any

from torch import Tensor, nn

from ppo_learner.lora import add_adapters
from ppo_learner.models import load_network, load_tokenizer
from ppo_learner.reward_batching import RewardMicroBatch
from ppo_learner.reward_config import RewardModelConfig
from services.contracts.reward_model import RewardHead
from services.contracts.settings import ModelConfig

CLASSIFIER = "classifier."
"""Prefix of the Hugging Face parameter names inside `RewardModel`."""

_CLASSES: dict[RewardHead, str] = {
    "outcome": "AutoModelForSequenceClassification",
    "process": "AutoModelForTokenClassification",
}


class RewardModel(nn.Module):
    """Gives one number to each text, or to each of its steps.

    Args:
        classifier: a transformers model for sequence or token classification with one label.
        padding: the token id that sequences are filled up with.
    """

    def __init__(self, classifier: Any, *, padding: int) -> None:  # Any: transformers
        super().__init__()
        self.classifier = classifier
        self.padding = padding

    def forward(self, batch: RewardMicroBatch) -> Tensor:
        """(N,) the micro-batch's scores, float32."""
        logits = self.classifier(input_ids=batch.token_ids, attention_mask=batch.attention_mask).logits
        # (S, 1) or (S, T, 1) → (N,)
        at = (batch.rows, batch.positions, 0) if logits.dim() == 3 else (batch.rows, 0)
        return logits[at].float()  # type: ignore[no-any-return]  # transformers is untyped


def load_reward_model(model: ModelConfig, learner: RewardModelConfig) -> RewardModel:
    """The reward model, ready to train. Raises `UserError` when it cannot be read."""
    tokenizer = load_tokenizer(model)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    classifier = load_network(
        _CLASSES[learner.parts.head],
        model.path,
        model,
        learner,
        dropout=learner.dropout,
        from_scratch=learner.from_scratch,
        num_labels=1,
        pad_token_id=padding,
        use_cache=False,
    )
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = learner.dropout  # Some heads have a rate that no configuration names.
    if learner.from_scratch or type(classifier).__name__ not in (classifier.config.architectures or ()):
        _start_at_zero(classifier)
    if learner.lora:
        add_adapters(classifier.base_model, learner.lora)  # The head is trained whole.
    return RewardModel(classifier, padding=padding)


def _start_at_zero(classifier: nn.Module) -> None:
    """Have a new head prefer nothing, where random weights would have to be unlearnt first."""
    *_, head = (module for module in classifier.modules() if isinstance(module, nn.Linear) and module.out_features == 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
