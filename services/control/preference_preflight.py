"""What can be found wrong with preference training before it starts: model, tokenizer, data, lengths.

It must not start a process. Invariant: as in `preflight`, what it returns is ready to be trained on.
"""

from rollout_workers.preference_data import PreferenceExamples, load_preferences
from services.control.config import PreferenceRunConfig
from services.control.preflight import check_packages, load_tokenizer


def check_preferences(config: PreferenceRunConfig) -> PreferenceExamples:
    """Load tokenizer and preferences.

    Raises:
        UserError: naming the value, the rule and the fix.
    """
    check_packages(config.learner)
    tokenizer, max_length = load_tokenizer(config.model, num_sharing=config.learner.sequence_parallel)
    form = config.learner.parts.examples
    return load_preferences(config.data, tokenizer, form=form, max_tokens=max_length, seed=config.run.seed)
