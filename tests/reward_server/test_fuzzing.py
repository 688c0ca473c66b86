"""Whatever is sent to a reward server, or returned by a reward, has a typed answer; what is sent arrives as it was."""

import math
import re
from contextlib import suppress
from dataclasses import replace
from typing import get_args

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction
from reward_server.scorer import to_outcome
from reward_server.wire import read_request
from services.contracts.records import (
    Failure,
    FailureCode,
    Json,
    Message,
    Reward,
    RewardDescription,
    RewardSample,
    Role,
    StepReward,
)
from services.protos.reward.v1 import reward_pb2
from services.transport.reward_codec import LoneRequests, decode_outcome, decode_sample, encode_result, encode_sample
from tests.reward_server.serving import make_sample, serving

METHOD = "/trireme.reward.v1.RewardService/Score"
RANGE = RewardDescription(name="fuzzed", minimum=-1.0, maximum=1.0)

TEXTS = st.text(st.characters(), max_size=20)
"""Any code points, lone surrogates too."""
NUMBERS = st.floats() | st.integers() | st.integers(min_value=2**53 - 2, max_value=2**53 + 2)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXTS, part, max_size=3),
    max_leaves=10,
)
SAMPLES = st.builds(
    RewardSample,
    id=TEXTS,
    prompt=TEXTS,
    completion=TEXTS,
    token_ids=st.lists(st.integers(min_value=0, max_value=2**32 - 1), max_size=3).map(tuple),
    reference=st.dictionaries(TEXTS, JSON, max_size=3),
    policy_version=st.integers(min_value=-(2**63), max_value=2**63 - 1),
    turns=st.lists(st.builds(Message, role=st.sampled_from(get_args(Role)), content=TEXTS), max_size=3).map(tuple),
)


def nested(depth: int, *, objects: bool) -> Json:
    value: Json = 1
    for _ in range(depth):
        value = {"a": value} if objects else [value]
    return value


def equal(sent: Json, arrived: Json) -> bool:
    """Equal as JSON, where 18 is 18.0 but 1 is not true."""
    if isinstance(sent, dict) and isinstance(arrived, dict):
        return sent.keys() == arrived.keys() and all(equal(sent[key], arrived[key]) for key in sent)
    if isinstance(sent, list) and isinstance(arrived, list):
        return len(sent) == len(arrived) and all(map(equal, sent, arrived))
    return sent == arrived and isinstance(sent, bool) == isinstance(arrived, bool)


@given(SAMPLES)
def test_a_sample_arrives_as_it_was_or_is_refused_before_it_is_sent(sample: RewardSample) -> None:
    try:
        message = encode_sample(sample, with_token_ids=True)
    except ValueError:
        return
    request = read_request(reward_pb2.ScoreRequest(samples=[message]).SerializeToString())
    assert isinstance(request, reward_pb2.ScoreRequest)
    arrived = decode_sample(request.samples[0])
    for name in ("id", "prompt", "completion", "token_ids", "policy_version", "turns"):
        assert getattr(arrived, name) == getattr(sample, name)
    assert equal(dict(sample.reference), dict(arrived.reference))


@given(st.lists(st.tuples(SAMPLES, TEXTS), max_size=4))
@example([(make_sample(shown=True), "a"), (make_sample(shown=1), "b")])
def test_samples_of_one_prompt_are_written_as_each_alone_would_be(drawn: list[tuple[RewardSample, str]]) -> None:
    requests = LoneRequests(with_token_ids=True)
    for first, completion in drawn:
        for sample in (first, replace(first, id="another", completion=completion)):
            try:
                message = encode_sample(sample, with_token_ids=True)
            except ValueError as error:
                with pytest.raises(ValueError, match=re.escape(str(error))):
                    requests.encode(sample)
            else:
                written = reward_pb2.ScoreRequest.FromString(requests.encode(sample))
                assert written == reward_pb2.ScoreRequest(samples=[message])


@pytest.mark.parametrize("objects", [True, False])
@given(depth=st.integers(min_value=0, max_value=60))
@example(depth=5000)
def test_what_is_nested_too_deeply_to_be_read_is_refused_before_it_is_sent(objects: bool, depth: int) -> None:
    sample = make_sample(nested=nested(depth, objects=objects))
    limit = 32 if objects else 48
    if depth > limit:
        with pytest.raises(ValueError, match="nested too deeply"):
            encode_sample(sample, with_token_ids=False)
        return
    message = encode_sample(sample, with_token_ids=False)
    assert not isinstance(read_request(reward_pb2.ScoreRequest(samples=[message]).SerializeToString()), DecodeError)


@given(st.binary(max_size=300))
@example(reward_pb2.ScoreRequest(samples=[reward_pb2.Sample(id="a")]).SerializeToString())
def test_any_bytes_are_a_request_or_a_fault(data: bytes) -> None:
    request = read_request(data)
    if isinstance(request, DecodeError):
        return
    for message in request.samples:
        with suppress(ValueError):  # A role that does not exist, which fails the sample alone.
            assert decode_sample(message).id == message.id


@given(st.dictionaries(TEXTS.filter(lambda text: text.isascii()), st.floats(), max_size=5))
def test_numbers_that_json_does_not_have_are_read_all_the_same(numbers: dict[str, float]) -> None:
    message = reward_pb2.Sample(id="a")
    for key, number in numbers.items():
        message.reference.fields[key].number_value = number
    read = decode_sample(message).reference
    assert all(read[key] == number or math.isnan(number) for key, number in numbers.items())


ODD = st.none() | st.booleans() | NUMBERS | TEXTS | st.binary(max_size=3) | st.lists(st.floats(), max_size=2)
FINE = st.floats(min_value=-1.0, max_value=1.0)
REWARDS = st.builds(
    Reward,
    value=FINE | ODD,
    components=st.dictionaries(TEXTS | st.integers(), FINE | ODD, max_size=2),
    steps=st.lists(st.builds(StepReward, start=st.integers(0, 2) | ODD, end=st.just(4) | ODD, value=FINE), max_size=2),
    version=st.just("1") | TEXTS | st.integers(),
)
FAILURES = st.builds(Failure, code=st.sampled_from(FailureCode), message=TEXTS, retryable=st.booleans())


@settings(max_examples=300)
@given(ODD | REWARDS | FAILURES)
@example(Reward(value=0.5, components={"\ud800": 0.5}))
@example(Reward(value=0.5, steps=(StepReward(start=0.5, end=4, value=0.5),)))  # type: ignore[arg-type]  # as users do
def test_whatever_a_reward_returns_is_sent_as_a_finite_number_or_a_failure(returned: object) -> None:
    sample = make_sample(completion="four")
    result = encode_result(sample.id, to_outcome(returned, sample, RANGE))
    sent = decode_outcome(reward_pb2.Result.FromString(result.SerializeToString()))
    assert isinstance(sent, Failure) or (isinstance(sent, Reward) and -1.0 <= sent.value <= 1.0)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=300), min_size=20, max_size=60))
async def test_a_server_lives_through_any_bytes(payloads: list[bytes]) -> None:
    async with (
        serving(RewardFunction(lambda sample: 0.0), RewardServerConfig(port=0, drain_s=0.0)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        score = channel.unary_unary(METHOD)
        for payload in [*payloads, b"\xff", b"\x12\x02\x0a\x05"]:
            try:
                reward_pb2.ScoreResponse.FromString(await score(payload, timeout=5.0))
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
        alive = await score(reward_pb2.ScoreRequest(request_id="r").SerializeToString(), timeout=5.0)
    assert reward_pb2.ScoreResponse.FromString(alive).request_id == "r"
