"""What the user most likely meant by a key that is no setting.

It must not know what any setting means, beside what others call some of them. Invariant: it names a setting only where
that is clear, and else those that there are.
"""

from collections.abc import Collection
from difflib import SequenceMatcher

CUTOFF = 0.7
"""Least likeness of two names, of which 1 is the same one."""
ELSEWHERE = {
    "batch_size": ("train.prompts_per_step",),
    "data.path": ("data.prompts", "data.examples"),
    "dataset": ("data.prompts", "data.examples"),
    "kl_coef": ("learner.kl_coefficient",),
    "learning_rate": ("learner.lr",),
    "max_new_tokens": ("rollout.max_completion_tokens",),
    "max_steps": ("train.num_steps",),
    "max_tokens": ("rollout.max_completion_tokens",),
    "model_name": ("model.path",),
    "model_name_or_path": ("model.path",),
    "num_generations": ("rollout.samples_per_prompt",),
    "output_dir": ("run.dir",),
    "save_steps": ("train.checkpoint_every",),
    "steps": ("train.num_steps",),
    "total_steps": ("train.num_steps",),
}
"""What others call a setting, alone or in a section, as far as it has one clear answer: the first that there is."""


def meant_by(key: str, keys: Collection[str]) -> str:
    """The setting of `keys` that `key` likely means, as a question; without one, what there is in its section."""
    section, _, name = key.rpartition(".")
    siblings = [known for known in keys if known.rpartition(".")[0] == section]
    namesakes = [known for known in keys if known.rpartition(".")[2] == name]
    candidates = [*ELSEWHERE.get(key, ()), *(namesakes if len(namesakes) == 1 else ()), _nearest(key, siblings)]
    for near in (*candidates, *ELSEWHERE.get(name, ()), _nearest(key, keys)):
        if near in keys:
            return f"did you mean {near}?"
    if section and siblings:
        return f"{section} has {', '.join(sorted(known.rpartition('.')[2] for known in siblings))}"
    return f"the sections are {', '.join(sorted(known for known in keys if not set('.-') & set(known)))}"


def _nearest(key: str, keys: Collection[str]) -> str:
    """By their last parts, and of equals by their sections; empty where none is near."""

    def order(known: str) -> tuple[float, float, str]:
        return _likeness(key, known), SequenceMatcher(None, key, known).ratio(), known

    near = max(keys, key=order, default="")
    return near if near and _likeness(key, near) >= CUTOFF else ""


def _likeness(key: str, known: str) -> float:
    name, other = key.rpartition(".")[2], known.rpartition(".")[2]
    return 1.0 if sorted(name) == sorted(other) else SequenceMatcher(None, name, other).ratio()
