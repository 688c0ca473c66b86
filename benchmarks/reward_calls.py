"""What a call for rewards costs: against a bare grpc.aio echo of the same bytes, and against JSON over HTTP.

The reward does nothing, so that only the service is measured. The client runs on one core, the servers, of which one
works at a time, on another. *Server*: the same bare client sends the same bytes to both servers. *Client and server*:
`RewardClient.score`, which encodes, retries and checks every answer, against the bare client and the echo. Against
HTTP, which scores one sample a call, samples are counted; the echo over HTTP is what grpc.aio leaves to calls of one.

    python -m benchmarks.reward_calls [--pairs 7] [--seconds 1] [--characters 2000] [--output results.json]
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import grpc

from benchmarks.pairs import Ratio, in_turn, report
from services.contracts.records import Prompt, Reward, RewardSample, Rollout, RolloutGroup
from services.control.reward_samples import to_reward_samples
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_client import RewardClient
from services.transport.reward_codec import SERVICE_NAME, encode_sample

AT_ONCE = 16
SIZES = (1, 8, 16)
"""Samples in a call; a call has the samples of one prompt."""

Call = Callable[[], Awaitable[object]]


@contextmanager
def running(name: str) -> Iterator[str]:
    """One of the servers, in a process of its own; gives its address."""
    command = [sys.executable, "-m", "benchmarks.reward_servers", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[-1]
        finally:
            server.kill()


def group_of(size: int, num_characters: int) -> list[RewardSample]:
    """Completions of one prompt, as the controller sends them."""
    prompt = Prompt(
        id="0-17", text="What is six times seven? Think step by step. " * 4, token_ids=array("i"),
        reference={"answer": "42", "difficulty": 3},
    )  # fmt: skip
    completion = ("The answer is forty-two. " * (num_characters // 25 + 1))[:num_characters]
    rollout = Rollout(
        prompt_id=prompt.id, sample_index=0, completion=completion, finish_reason="stop",
        token_ids=array("i", [0]), logprobs=array("f", [0]), policy_versions=array("i", [0]),
        loss_mask=array("b", [1]), num_prompt_tokens=0,
    )  # fmt: skip
    rollouts = tuple(replace(rollout, sample_index=index) for index in range(size))
    return to_reward_samples(RolloutGroup(prompt=prompt, rollouts=rollouts))


@asynccontextmanager
async def by_bare_client(address: str, group: list[RewardSample], *, echoed: bool) -> AsyncIterator[Call]:
    messages = [encode_sample(sample, with_token_ids=False) for sample in group]
    request = reward_pb2.ScoreRequest(request_id="0" * 32, samples=messages).SerializeToString()
    async with grpc.aio.insecure_channel(address) as channel:
        score = channel.unary_unary(f"/{SERVICE_NAME}/Score")
        answer = await score(request)
        assert answer == request if echoed else len(reward_pb2.ScoreResponse.FromString(answer).results) == len(group)
        yield lambda: score(request)


@asynccontextmanager
async def by_our_client(address: str, group: list[RewardSample]) -> AsyncIterator[Call]:
    client = RewardClient([address])
    assert await client.score(group) == [Reward(value=0.0, version="0")] * len(group)
    yield lambda: client.score(group)
    await client.close()


@asynccontextmanager
async def by_http(address: str, sample: RewardSample) -> AsyncIterator[Call]:
    fields = {name: getattr(sample, name) for name in ("id", "prompt", "completion", "reference")}
    async with aiohttp.ClientSession() as session:

        async def call() -> object:
            async with session.post(f"http://{address}/score", json=fields) as answer:
                return await answer.json()

        assert await call() == {"id": sample.id, "reward": 0.0}
        yield call


def rate(call: Call, *, seconds: float, samples_per_call: int = 1) -> Callable[[], Awaitable[float]]:
    """Measures calls (or samples) per second, `AT_ONCE` calls under way at any time."""

    async def measure() -> float:
        started = time.perf_counter()
        num_calls = 0

        async def go_on() -> None:
            nonlocal num_calls
            while time.perf_counter() < started + seconds:
                await call()
                num_calls += 1

        await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))
        return num_calls * samples_per_call / (time.perf_counter() - started)

    return measure


async def measure(addresses: dict[str, str], arguments: argparse.Namespace) -> list[Ratio]:
    ratios = []
    for size in SIZES:
        group, text = group_of(size, arguments.characters), f"{size} sample{'s' * (size > 1)} a call"
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            echo = rate(await enter(by_bare_client(addresses["echo"], group, echoed=True)), seconds=arguments.seconds)
            bare = rate(await enter(by_bare_client(addresses["null"], group, echoed=False)), seconds=arguments.seconds)
            call = await enter(by_our_client(addresses["null"], group))
            ours = rate(call, seconds=arguments.seconds)
            scored = rate(call, seconds=arguments.seconds, samples_per_call=size)
            http = rate(await enter(by_http(addresses["http"], group[0])), seconds=arguments.seconds)
            for name, unit, mine, theirs, aim in (
                (f"server ÷ echo, {text}", "calls/s", bare, echo, 0.85),
                (f"client and server ÷ echo, {text}", "calls/s", ours, echo, 0.85),
                (f"client and server ÷ HTTP, {text}", "samples/s", scored, http, 3.0),
                *([("echo ÷ HTTP: most that calls of one can reach", "calls/s", echo, http, 3.0)] if size == 1 else []),
            ):
                measured = await in_turn(mine, theirs, num_pairs=arguments.pairs)
                ratios.append(Ratio(name=name, unit=unit, ours=measured[0], theirs=measured[1], aim=aim))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument("--characters", type=int, default=2000, help="of a completion")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with running("null") as null, running("echo") as echo, running("http") as http:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        ratios = asyncio.run(measure({"null": null, "echo": echo, "http": http}, arguments))
        os.sched_setaffinity(0, cores)
    report(ratios, output=arguments.output)


if __name__ == "__main__":
    main()
