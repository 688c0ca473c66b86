"""Reward services each of which breaks one thing of the contract."""

import asyncio
from collections.abc import Callable
from typing import Any
from zlib import crc32

import grpc
from grpc_health.v1 import health_pb2

from services.protos.reward.v1 import reward_pb2
from tests.reward_server.conforming import MAX_SAMPLES, Conforming, Context, Request, Response
from tests.reward_server.serving import response, results, until


def answering(answer: Callable[[Request], Response]) -> Conforming:
    class Broken(Conforming):
        async def answer(self, request: Request) -> Response:
            return answer(request)

    return Broken()


def valued(value: float) -> Conforming:
    return answering(lambda request: response(request, results(request, value=value)))


def describing(**description: object) -> Conforming:
    class Broken(Conforming):
        async def Describe(self, request: object, context: Context) -> reward_pb2.DescribeResponse:  # noqa: N802
            return reward_pb2.DescribeResponse(**{"name": "fair", "max_batch_samples": MAX_SAMPLES} | description)

    return Broken()


def with_attributes(**attributes: object) -> Conforming:
    return type("Broken", (Conforming,), attributes)()


def refusing(is_refused: Callable[[Request], bool], code: grpc.StatusCode) -> Conforming:
    class Broken(Conforming):
        async def refuse(self, request: Request, context: Context) -> None:
            if is_refused(request):
                await context.abort(code, "scripted")
            await super().refuse(request, context)

    return Broken()


def unguarded() -> Conforming:
    class Broken(Conforming):
        async def refuse(self, request: Request, context: Context) -> None:
            """Takes whatever comes."""

    return Broken()


def failing_on(is_bad: Callable[[str], bool]) -> Conforming:
    def answer(request: Request) -> Response:
        assert not any(is_bad(sample.completion) for sample in request.samples), "the reward raised"
        return response(request, results(request))

    return answering(answer)


def without(request: Request, field: str) -> Response:
    answer = response(request, results(request))
    for result in answer.results:
        result.ClearField(field)
    return answer


def merging(request: Request) -> Response:
    """One result for each id, as of a service that keeps samples in a table."""
    return response(request, list({result.sample_id: result for result in results(request)}.values()))


def renamed(request: Request, rename: Callable[[str], str]) -> Response:
    answer = response(request, results(request))
    for result in answer.results:
        result.sample_id = rename(result.sample_id)
    return answer


def by_place(request: Request) -> Response:
    answer = response(request, results(request))
    for place, result in enumerate(answer.results):
        result.reward.value = place / MAX_SAMPLES
    return answer


def counting_utf16(request: Request) -> Response:
    answer = response(request, results(request))
    for sample, result in zip(request.samples, answer.results, strict=True):
        result.reward.steps.add(start=0, end=len(sample.completion.encode("utf-16-le")) // 2, value=0.5)
    return answer


def strict_about_fields(request: Request) -> Response:
    assert all(not sample.reference.fields for sample in request.samples), "unknown field in the reference"
    return response(request, results(request))


class Wedged(Conforming):
    """Keeps a lock when a call is given up."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        await self._lock.acquire()
        await asyncio.sleep(0.01)
        self._lock.release()
        return response(request, results(request))


class SharedState(Conforming):
    """Keeps the request where the next call overwrites it."""

    async def answer(self, request: Request) -> Response:
        self._request_id = request.request_id
        await asyncio.sleep(0.005)
        return Response(request_id=self._request_id, results=results(request))


class Overrun(Conforming):
    """Fails where it should refuse."""

    def __init__(self, code: grpc.StatusCode | None) -> None:
        super().__init__()
        self._code = code

    async def refuse(self, request: Request, context: Context) -> None:
        await super().refuse(request, context)
        if len(self.under_way) >= 32:
            await (context.abort(self._code, "out of threads") if self._code else asyncio.sleep(60))

    async def answer(self, request: Request) -> Response:
        await asyncio.sleep(0.05)
        return await super().answer(request)


class Slow(Conforming):
    """Not broken, but slow enough that calls are under way when it is told to end."""

    async def answer(self, request: Request) -> Response:
        await asyncio.sleep(0.4 if len(request.samples) > 1 else 0.0)
        return await super().answer(request)


class Unread(Slow):
    """Not broken, but so busy that calls wait before it looks at them, and those that waited too long are refused."""

    async def Score(self, request: Request, context: Context) -> Response:  # noqa: N802
        if len(request.samples) > 1:
            await asyncio.sleep(0.4)
        return await super().Score(request, context)

    async def drain(self, server: Any, healths: Any) -> None:  # Any: grpc's, which have no types
        self.draining = True
        await healths.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.stop(2.0)


class Abrupt(Slow):
    """Ends at once."""

    async def drain(self, server: Any, healths: Any) -> None:  # Any: grpc's, which have no types
        await server.stop(0)


class Rude(Slow):
    """Refuses new calls, with a status that clients do not try again."""

    ending = False

    async def refuse(self, request: Request, context: Context) -> None:
        if self.ending:
            await context.abort(grpc.StatusCode.INTERNAL, "scripted")
        await super().refuse(request, context)

    async def drain(self, server: Any, healths: Any) -> None:  # Any: grpc's, which have no types
        self.ending = True


class Immortal(Slow):
    """Does not end."""

    async def drain(self, server: Any, healths: Any) -> None:  # Any: grpc's, which have no types
        """Goes on."""


class Silent(Slow):
    """Ends as it should, but its health does not say so."""

    async def drain(self, server: Any, healths: Any) -> None:  # Any: grpc's, which have no types
        self.draining = True
        await until(lambda: not self.under_way)
        await server.stop(0.2)


def scored_by(completion: str) -> float:
    """Another score for each text."""
    return crc32(completion.encode()) / 2**32


def mirrored(request: Request) -> Response:
    """Each sample gets the score of its mirror image, as of a service that takes scores from the end of a list."""
    scores = [scored_by(sample.completion) for sample in request.samples]
    answer = response(request, results(request))
    for result in answer.results:
        result.reward.value = scores.pop()
    return answer


def rotated(request: Request) -> Response:
    """An exact match whose samples get their neighbours' scores."""
    scores = [float(sample.completion == "The answer is 42.") for sample in request.samples]
    answer = response(request, results(request))
    for result, score in zip(answer.results, [*scores[1:], *scores[:1]], strict=True):
        result.reward.value = score
    return answer


def of_two_versions(request: Request) -> Response:
    answer = response(request, results(request))
    for number, result in enumerate(answer.results):
        result.reward.version = f"v{number % 2}"
    return answer


class SharedScore(Conforming):
    """Keeps its last score where the next call overwrites it; ids are each call's own."""

    score = 0.0

    async def answer(self, request: Request) -> Response:
        for sample in request.samples:
            self.score = scored_by(sample.completion)
        await asyncio.sleep(0.05)
        return response(request, results(request, value=self.score))
