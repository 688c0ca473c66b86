"""Every preference method on a task whose optimum is known: how near it comes to what its paper predicts.

A bandit as a language model: one prompt, three completions of one character, and people who prefer them as Bradley and
Terry say, with rewards ln 1, ln 2 and ln 4. For each seed a small Llama with random weights is trained on preferences
that were drawn, through the learner that `trireme prefer` uses, until its loss stands still.

    python -m benchmarks.preference_table [--seeds 3] [--output runs/benchmarks/preference_table.json]
"""

import argparse
import json
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.preference_optima import METHODS, REWARDS, Floats, Method, chances, optimum, total_variation
from ppo_learner.preference_config import PreferenceConfig
from ppo_learner.preference_training import PreferenceTask
from ppo_learner.supervised import SupervisedRank
from services.contracts.preference_example import PreferenceExample
from services.contracts.records import Demonstration
from services.contracts.settings import ModelConfig
from services.transport.ports import free_port

END, PROMPT, FIRST = 1, 2, 3
"""Token ids: the end of a completion, the prompt, the first of the completions."""
NUM_STEPS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One method with one seed; distances are total variations over the method's rivals, None where there is none.

    Attributes:
        before: from the initial policy to the minimum of the paper's loss on the preferences that were drawn.
        after: from the trained policy to it.
        population: from the trained policy to the paper's closed form with the true chances; where preferences are
            drawn, this has the error of so few draws in it.
        in_order: share of the rivals' pairs in which the better completion gained more than the worse one, or is ahead
            where there is no reference.
        as_labelled: share of the completions that are on the side of KTO's reference point that most of their labels
            ask for.
    """

    method: str
    seed: int
    before: float | None = None
    after: float | None = None
    population: float | None = None
    in_order: float
    as_labelled: float | None = None


def write_bandit(folder: Path, seed: int) -> Path:
    """A Llama of a few thousand parameters whose distribution over the completions is far from even."""
    torch.manual_seed(seed)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=FIRST + len(REWARDS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=16,
            initializer_range=0.3,
            bos_token_id=None,
            pad_token_id=0,
            eos_token_id=END,
            dtype="float32",
        )
    ).save_pretrained(folder)
    return folder


def draw_counts(method: Method, seed: int) -> Floats:
    """(K, K) how often the completion of the row is written down as better than that of the column."""
    draw = np.random.default_rng(seed)
    counts = np.zeros((len(REWARDS), len(REWARDS)))
    chance = chances(flipped=method.flipped)
    for i, j in combinations(method.rivals, 2):
        exact = round(method.num_draws * chance[i, j])
        counts[i, j] = exact if method.exact else draw.binomial(method.num_draws, chance[i, j])
        counts[j, i] = method.num_draws - counts[i, j]
    return counts


def make_examples(counts: Floats, *, labels: bool) -> list[PreferenceExample]:
    """A row for each preference; with labels two, the winner's desirable and the loser's not."""
    preferences = [(int(i), int(j)) for i, j in zip(*counts.nonzero(), strict=True) for _ in range(int(counts[i, j]))]
    if not labels:
        return [
            PreferenceExample(row=row, completions=(completion(i), completion(j)))
            for row, (i, j) in enumerate(preferences)
        ]
    sides = [side for i, j in preferences for side in ((i, True), (j, False))]
    return [
        PreferenceExample(
            row=row,
            completions=(completion(number),),
            desirable=desirable,
            unrelated=completion(sides[(row + 1) % len(sides)][0]),
        )
        for row, (number, desirable) in enumerate(sides)
    ]


def completion(number: int) -> Demonstration:
    """Behind the prompt, with the end of sequence."""
    return Demonstration(token_ids=array("i", [PROMPT, FIRST + number, END]), loss_mask=array("b", [0, 1, 1]))


def train(model: Path, method: str, seed: int, *, num_steps: int = NUM_STEPS) -> Outcome:
    """Train a bandit by one method, and hold it against what its paper predicts."""
    settings = METHODS[method]
    schedule = {"lr": 1e-2, "lr_schedule": "cosine", "max_tokens_per_micro_batch": 10**6}
    learner = PreferenceConfig.model_validate(schedule | dict(settings.learner))
    rank = SupervisedRank(
        task=PreferenceTask,
        learner=learner,
        model=ModelConfig(path=str(model), dtype="float32"),
        rank=0,
        world_size=1,
        master_address="127.0.0.1",
        master_port=free_port("127.0.0.1"),
        seed=seed,
        total_steps=num_steps,
    )
    reference = _logprobs(rank)
    counts = draw_counts(settings, seed)
    examples = make_examples(counts, labels=learner.parts.examples == "labels")
    if learner.parts.needs_reference:
        examples = [_with_reference(example, reference) for example in examples]
    for _ in range(num_steps):
        rank.step(examples)
    trained = _logprobs(rank)
    rank.close()
    return judge(method, seed, counts, reference, trained, relative=learner.parts.needs_reference)


def judge(method: str, seed: int, counts: Floats, reference: Floats, trained: Floats, *, relative: bool) -> Outcome:
    """Hold a trained policy against the predictions.

    Args:
        counts: (K, K) as drawn.
        reference: (K,) logprobs of the completions before training.
        trained: (K,) after it.
        relative: the method looks at the policy only in comparison with its initial weights.
    """
    settings = METHODS[method]
    rivals = list(settings.rivals)
    gained = trained - reference if relative else trained
    in_order = fmean(bool(gained[i] < gained[j]) for i, j in combinations(rivals, 2))
    exact = None if settings.population is None else reference + settings.population
    # Without a loss in NumPy, the rows are divided as the chances are, or nothing is predicted.
    best = exact if settings.loss is None else optimum(settings.loss, reference, counts)

    def distance(policy: Floats, to: Floats | None) -> float | None:
        return None if to is None else total_variation(policy[rivals], to[rivals])

    return Outcome(
        method=method,
        seed=seed,
        before=distance(reference, best),
        after=distance(trained, best),
        population=distance(trained, exact),
        in_order=in_order,
        as_labelled=_as_labelled(counts, gained) if settings.learner["algorithm"] == "kto" else None,
    )


def _as_labelled(counts: Floats, gained: Floats) -> float:
    """Share of the completions with labels that are on the side of KTO's reference point that most of these ask for."""
    wins, losses = counts.sum(axis=1), counts.sum(axis=0)
    labels = wins + losses
    point = max(0.0, float((gained * labels).sum() / labels.sum()))
    return float(np.mean(((gained > point) == (wins > losses))[labels > 0]))


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each method, with means over its seeds; of `after` also the largest."""
    lines = [
        "| method | before | after (largest) | to the closed form | pairs in order | as labelled |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.method == method]
        after = _mean(own, "after")
        worst = f" ({max(outcome.after or 0.0 for outcome in own):.4f})" if after else ""
        cells = (
            method,
            _mean(own, "before"),
            after + worst,
            *(_mean(own, name) for name in ("population", "in_order", "as_labelled")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(outcomes: Sequence[Outcome], name: str) -> str:
    values = [value for outcome in outcomes if (value := getattr(outcome, name)) is not None]
    return f"{fmean(values):.4f}" if values else ""


def _with_reference(example: PreferenceExample, logprobs: Floats) -> PreferenceExample:
    """The row with what the initial policy gives its sequences."""
    numbers = (sequence.token_ids[1] - FIRST for sequence in example.sequences)
    return replace(example, reference=tuple(float(logprobs[number]) for number in numbers))


def _logprobs(rank: SupervisedRank) -> Floats:
    """(K,) of the completions, under the present policy."""
    numbers = range(len(REWARDS))
    pairs = [PreferenceExample(row=0, completions=(completion(number), completion(number))) for number in numbers]
    return np.array(rank.answers(pairs)[::2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # More would only wait for each other on so little.
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            model = write_bandit(Path(temporary) / f"model_{seed}", seed)
            outcomes += [train(model, method, seed) for method in METHODS]
    print(table(outcomes))
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")


if __name__ == "__main__":
    main()
