"""A reward model under many callers against the same model offline: samples scored per second, served ÷ offline.

Served: a server of its own process, and callers that each send the group of one prompt and wait for its scores before
they send the next. Offline: transformers alone, all texts known beforehand, sorted by length and cut into batches of
the same number of tokens. Both read the same texts with the same threads, and tokenise them within the time; their
scores are asserted equal.

    python -m benchmarks.reward_model_serving [--pairs 5] [--callers 32] [--groups 4] [--max-batch-tokens 4096]
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from benchmarks.pairs import Ratio, in_turn, report
from benchmarks.reference_model import write_reference_model
from reward_server.child import RewardServerChild
from reward_server.config import RewardServerConfig, RewardServiceConfig
from services.contracts.records import Reward, RewardSample
from services.contracts.reward_model import RewardModelCard, write_card
from services.transport.reward_client import RewardClient

GROUP_SIZE = 4
PROMPT_CHARACTERS, MEDIAN_CHARACTERS, MOST_CHARACTERS = 32, 48, 448
LENGTH_SPREAD = 0.7
MAX_TOKENS = 512
AIM = 0.90


class Offline:
    """The best that is possible with transformers when nobody waits: one pass over everything, sorted."""

    def __init__(self, folder: Path, dtype: str, max_batch_tokens: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_cache=False
        ).eval()
        self._max_batch_tokens = max_batch_tokens
        self.num_parameters = self._model.num_parameters()

    @torch.inference_mode()
    def score(self, texts: Sequence[str]) -> list[float]:
        sequences = self._tokenizer(list(texts)).input_ids
        left = sorted(range(len(texts)), key=lambda index: len(sequences[index]))
        scores = [0.0] * len(texts)
        while left:
            size = 1
            while size < len(left) and (size + 1) * len(sequences[left[size]]) <= self._max_batch_tokens:
                size += 1
            batch, left = left[:size], left[size:]
            inputs = self._tokenizer.pad({"input_ids": [sequences[index] for index in batch]}, return_tensors="pt")
            for index, logit in zip(batch, self._model(**inputs).logits[:, 0].tolist(), strict=True):
                scores[index] = logit
        return scores


def write_model(folder: Path) -> None:
    """A Llama-shaped reward model of five million parameters, untrained, one token for each character."""
    config = write_reference_model(folder, hidden_size=256, num_layers=5).config
    config.num_labels = 1
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    write_card(folder, RewardModelCard(version="benchmark", max_tokens=MAX_TOKENS))


def make_groups(num_groups: int) -> list[list[RewardSample]]:
    """Prompts with completions of long-tailed lengths."""
    rng = random.Random(0)

    def text(length: int) -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz    .,", k=length))

    def length() -> int:
        return max(1, min(MOST_CHARACTERS, round(MEDIAN_CHARACTERS * rng.lognormvariate(0.0, LENGTH_SPREAD))))

    return [
        [RewardSample(id=f"{group}/{index}", prompt=prompt, completion=text(length())) for index in range(GROUP_SIZE)]
        for group in range(num_groups)
        for prompt in [text(PROMPT_CHARACTERS)]
    ]


async def served(client: RewardClient, groups: Sequence[Sequence[RewardSample]], num_callers: int) -> list[float]:
    """Every group's scores, asked by `num_callers` callers that wait for one before they ask for the next."""
    left = list(enumerate(groups))[::-1]
    scores: dict[int, list[float]] = {}

    async def call() -> None:
        while left:
            number, group = left.pop()
            outcomes = await client.score(group)
            scores[number] = [outcome.value for outcome in outcomes if isinstance(outcome, Reward)]

    await asyncio.gather(*(call() for _ in range(num_callers)))
    return [score for number in range(len(groups)) for score in scores[number]]


async def measure(arguments: argparse.Namespace, folder: Path, address: str) -> Ratio:
    groups = make_groups(arguments.callers * arguments.groups)
    texts = [sample.prompt + sample.completion for group in groups for sample in group]
    offline = Offline(folder, arguments.dtype, arguments.max_batch_tokens)
    client = RewardClient([address])
    found: dict[str, list[float]] = {}

    async def ours() -> float:
        started = time.perf_counter()
        found["served"] = await served(client, groups, arguments.callers)
        return len(texts) / (time.perf_counter() - started)

    async def theirs() -> float:
        started = time.perf_counter()
        found["offline"] = offline.score(texts)
        return len(texts) / (time.perf_counter() - started)

    measured = await in_turn(ours, theirs, num_pairs=arguments.pairs)
    await client.close()
    worst = max(abs(a - b) for a, b in zip(found["served"], found["offline"], strict=True))
    assert worst < (1e-4 if arguments.dtype == "float32" else 0.1), f"scores differ by {worst}"
    name = f"reward model of {offline.num_parameters / 1e6:.1f}M, {arguments.callers} callers ÷ offline"
    return Ratio(name=name, unit="samples/s", ours=measured[0], theirs=measured[1], aim=AIM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--groups", type=int, default=4, help="groups that each caller sends, one after the other")
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        options = {"path": name, "device": "cpu", "dtype": arguments.dtype}
        service = RewardServiceConfig(
            name="reward_model", options={**options, "max_batch_tokens": arguments.max_batch_tokens}
        )
        server = RewardServerChild([service], RewardServerConfig(port=0), log=folder / "server.log")
        try:
            ratio = asyncio.run(measure(arguments, folder, server.address))
        finally:
            server.stop()
    report([ratio], output=arguments.output)


if __name__ == "__main__":
    main()
