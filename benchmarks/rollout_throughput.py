"""Rollout service against the engine alone: tokens per second of the pool, over those of raw `vllm.LLM.generate`.

Both run the same engine arguments, prompts and seeds, each in a process of its own on the same cores, in turn; their
tokens are asserted equal. The service does more (groups, text, per-token versions, the way through Ray); the raw side
is asked for token ids and logprobs alone.

    python -m benchmarks.rollout_throughput [--pairs 5] [--threads 2] [--dtype float32] [--output results.json]
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from benchmarks.pairs import Ratio, in_turn, report
from benchmarks.reference_model import write_reference_model
from rollout_workers.config import RolloutConfig, engine_environment
from rollout_workers.pool import RolloutPool
from rollout_workers.worker import RolloutWorker
from services.contracts.records import Prompt, RolloutGroup, SampleRequest
from services.contracts.seeds import sampling_seed
from services.contracts.settings import ModelConfig

NUM_PROMPTS = 32
PROMPT_TOKENS = 16


class RawEngine:
    """`vllm.LLM` with the worker's engine arguments."""

    def __init__(self, model: ModelConfig, rollout: RolloutConfig) -> None:
        from vllm import LLM

        from rollout_workers.engine import engine_arguments

        self._llm = LLM(**engine_arguments(model, rollout))

    def generate(self, requests: Sequence[SampleRequest]) -> tuple[float, list[list[int]]]:
        """Seconds, and the tokens of each completion."""
        from vllm import SamplingParams

        prompts, params = [], []
        for request in requests:
            sampling = request.sampling
            for index in range(sampling.num_samples):
                seed = sampling_seed(
                    run_seed=sampling.seed, prompt_id=request.prompt.id, sample_index=index, policy_version=0
                )
                prompts.append({"prompt_token_ids": list(request.prompt.token_ids)})
                params.append(
                    SamplingParams(
                        max_tokens=sampling.max_completion_tokens, seed=seed, logprobs=0, flat_logprobs=True,
                        detokenize=False,
                    )
                )  # fmt: skip
        started = time.monotonic()
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return time.monotonic() - started, [list(output.outputs[0].token_ids) for output in outputs]


class RemoteWorker:
    """A worker in a process of its own, as the pool sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        return await self._actor.sample.remote(request)  # type: ignore[no-any-return]

    async def load_weights(self, publication: Any) -> Any:
        return await self._actor.load_weights.remote(publication)

    async def health(self) -> int:
        return await self._actor.health.remote()  # type: ignore[no-any-return]


def start_ray(*, object_store_memory: int, num_cpus: int = 2) -> None:
    """Start Ray on this machine, for `num_cpus` one-core processes at normal priority, cores or not."""
    os.environ.update(RAY_worker_niceness="0")
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=object_store_memory,
        include_dashboard=False,
        log_to_driver=False,
    )


async def start_worker(
    number: int, rollout: RolloutConfig, model: ModelConfig, *, transport: str | None
) -> RemoteWorker:
    """A rollout worker in a process of its own, with the model loaded."""
    in_worker = {"runtime_env": {"env_vars": engine_environment(rollout, cuda=False)}, "num_cpus": 1}
    actor = (
        ray.remote(RolloutWorker)
        .options(max_concurrency=1000, **in_worker)
        .remote(worker=number, rollout=rollout, model=model, transport=transport)
    )
    await actor.start.remote()
    return RemoteWorker(actor)


def orders(rollout: RolloutConfig, *, num_prompts: int = NUM_PROMPTS) -> list[SampleRequest]:
    """Requests for groups of prompts of random letters, each prompt another."""
    letters = random.Random(0)
    prompts = [
        Prompt(id=f"0-{row}", text="", token_ids=array("i", letters.choices(range(2, 99), k=PROMPT_TOKENS)))
        for row in range(num_prompts)
    ]
    return [SampleRequest(prompt=prompt, sampling=rollout.to_sampling(seed=0)) for prompt in prompts]


async def measure(arguments: argparse.Namespace, folder: Path) -> Ratio:
    rollout = RolloutConfig(max_completion_tokens=192, cpus_per_worker=arguments.threads, max_batched_tokens=8192)
    model = ModelConfig(path=str(folder), dtype=arguments.dtype)
    in_worker = {"runtime_env": {"env_vars": engine_environment(rollout, cuda=False)}, "num_cpus": 1}
    raw = ray.remote(RawEngine).options(**in_worker).remote(model, rollout)
    pool = RolloutPool([await start_worker(0, rollout, model, transport=None)])
    requests = orders(rollout)
    _, expected = await raw.generate.remote(requests)
    num_tokens = sum(map(len, expected))
    print(f"{len(expected)} completions, {num_tokens} tokens, longest {max(map(len, expected))}")

    async def ours() -> float:
        started = time.monotonic()
        groups = await asyncio.gather(*(pool.sample(request) for request in requests))
        seconds = time.monotonic() - started
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        assert [list(rollout.token_ids[PROMPT_TOKENS:]) for rollout in rollouts] == expected
        return num_tokens / seconds

    async def theirs() -> float:
        seconds, tokens = await raw.generate.remote(requests)
        assert tokens == expected
        return num_tokens / seconds

    measured = await in_turn(ours, theirs, num_pairs=arguments.pairs)
    return Ratio(
        name=f"rollout service ÷ raw vLLM ({arguments.dtype})", unit="tokens/s", ours=measured[0], theirs=measured[1],
        aim=0.95,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    start_ray(object_store_memory=200 * 2**20)
    with tempfile.TemporaryDirectory() as folder:
        write_reference_model(Path(folder))
        ratio = asyncio.run(measure(arguments, Path(folder)))
    report([ratio], output=arguments.output)
    ray.shutdown()


if __name__ == "__main__":
    main()
