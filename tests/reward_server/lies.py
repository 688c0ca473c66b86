"""Replies that break the reward contract, one fault each: what they are, and the words that name the fault."""

import math
from collections.abc import Callable, Mapping

from services.protos.reward.v1 import reward_pb2
from tests.reward_server.serving import response, results

Lie = Callable[[reward_pb2.ScoreRequest], reward_pb2.ScoreResponse]


def swapped_request_id(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    return reward_pb2.ScoreResponse(request_id="another", results=results(request))


def one_missing(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    return response(request, results(request)[1:])


def one_twice(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    return response(request, [*results(request), results(request)[0]])


def one_foreign(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    changed = results(request)
    changed[0].sample_id = "stranger"
    return response(request, changed)


def without_outcome(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    return response(request, [reward_pb2.Result(sample_id=sample.id) for sample in request.samples])


def valued(value: float) -> Lie:
    return lambda request: response(request, results(request, value))


def with_component(name: str, value: float) -> Lie:
    def lie(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        changed = results(request)
        changed[0].reward.components[name] = value
        return response(request, changed)

    return lie


def with_many_components(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    changed = results(request)
    changed[0].reward.components.update({f"part{number}": 0.0 for number in range(10_000)})
    return response(request, changed)


def with_step(start: int, end: int, value: float) -> Lie:
    def lie(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
        changed = results(request)
        changed[0].reward.steps.add(start=start, end=end, value=value)
        return response(request, changed)

    return lie


LIES: Mapping[str, tuple[Lie, str]] = {
    "another request's id": (swapped_request_id, "answered request 'another'"),
    "one result missing": (one_missing, r"1 results for 2 samples \(missing: '"),
    "one result twice": (one_twice, r"3 results for 2 samples \(given more than once: '"),
    "a foreign id": (one_foreign, "foreign: 'stranger'"),
    "neither reward nor failure": (without_outcome, "it has neither a reward nor a failure"),
    "NaN": (valued(math.nan), "the value is nan, which is not finite"),
    "infinity": (valued(math.inf), "the value is inf, which is not finite"),
    "out of range": (valued(1.5), r"1.5 lies outside the declared range \[0.0, 1.0\]"),
    "out of range by the least": (valued(math.nextafter(1.0, 2.0)), "lies outside the declared range"),
    "NaN in a component": (with_component("part", math.nan), "component 'part' is nan"),
    "thousands of components": (with_many_components, "it has 10000 components"),
    "a step beyond the completion": (with_step(0, 99, 0.0), r"a step covers characters \[0, 99\)"),
    "an infinite step": (with_step(0, 1, math.inf), r"the step at characters \[0, 1\) is inf"),
}
