"""Reward records to protobuf messages and back; the only file that knows both shapes.

It must not judge what it converts: see `reward_validation`. Invariant: a sample decodes to what was encoded, except
that numbers in a reference follow JSON, where 18 and 18.0 are the same (both decode to 18). What would not survive
the way (an integer beyond 2**53, a value that is not finite, a lone surrogate) is refused with a ValueError.
"""

import math
from collections.abc import Iterable, Mapping
from typing import get_args

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from services.contracts.records import (
    Failure,
    FailureCode,
    FinishReason,
    Json,
    Message,
    Reward,
    RewardDescription,
    RewardSample,
    Role,
    StepReward,
)
from services.protos.reward.v1 import reward_pb2

SERVICE_NAME = "trireme.reward.v1.RewardService"
DEFAULT_MAX_BATCH_SAMPLES = 1024
DEFAULT_MAX_REQUEST_BYTES = 4 << 20
DEFAULT_CONTRACT_VERSION = 1
LARGEST_EXACT_INTEGER = 2**53
MAX_LEVELS = 100
"""How deep messages may be nested for the readers of protobuf, below the request."""

_FINISH_NUMBERS: Mapping[FinishReason, reward_pb2.FinishReason] = {
    reason: getattr(reward_pb2, f"FINISH_REASON_{reason.upper()}") for reason in get_args(FinishReason)
}
_FINISH_REASONS: Mapping[int, FinishReason] = {number: reason for reason, number in _FINISH_NUMBERS.items()}
_FAILURE_CODES = {reward_pb2.FailureCode.Value(f"FAILURE_CODE_{code.name}"): code for code in FailureCode}
_ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}


def encode_sample(sample: RewardSample, *, with_token_ids: bool) -> reward_pb2.Sample:
    """The sample as a message, with token ids only where the service needs them.

    Raises:
        ValueError: naming what of the sample cannot be sent.
    """
    message = _encode_question(sample)
    _write_answer(message, sample, with_token_ids=with_token_ids)
    return message


class LoneRequests:
    """Writes samples as requests with one sample each. The bytes of several requests, put together, are one request
    with the samples of all, as protobuf merges what comes twice; so a sample is written once, however it is sent.

    What a sample has in common with the one before it, as completions of one prompt have, is checked and written once.
    """

    def __init__(self, *, with_token_ids: bool) -> None:
        self._with_token_ids = with_token_ids
        self._last: RewardSample | None = None
        self._question = reward_pb2.Sample()

    def encode(self, sample: RewardSample) -> bytes:
        """A request with this sample alone. Raises `ValueError` as `encode_sample`."""
        if self._last is None or not _has_question_of(sample, self._last):
            self._question = _encode_question(sample)
            self._last = sample
        request = reward_pb2.ScoreRequest()
        message = request.samples.add()
        message.CopyFrom(self._question)
        _write_answer(message, sample, with_token_ids=self._with_token_ids)
        data: bytes = request.SerializeToString()
        return data


def _has_question_of(sample: RewardSample, other: RewardSample) -> bool:
    """Whether both have the same objects; equal ones may be written otherwise (True and 1)."""
    return sample.reference is other.reference and sample.prompt is other.prompt and sample.messages is other.messages


def _encode_question(sample: RewardSample) -> reward_pb2.Sample:
    _refuse_lossy(sample.reference, "reference")
    message = reward_pb2.Sample(
        prompt=_text(sample.prompt, "prompt"),
        messages=_encode_messages(sample.messages, "message"),
    )
    message.reference.update(sample.reference)
    return message


def _write_answer(message: reward_pb2.Sample, sample: RewardSample, *, with_token_ids: bool) -> None:
    message.id = sample.id
    message.completion = _text(sample.completion, "completion")
    message.policy_version = sample.policy_version
    message.finish_reason = _FINISH_NUMBERS[sample.finish_reason]
    if sample.turns:
        message.turns.extend(_encode_messages(sample.turns, "turn"))
    if with_token_ids:
        message.token_ids.extend(sample.token_ids)


def encode_request_id(request_id: str) -> bytes:
    """A request without samples, to be put together with those that have some."""
    data: bytes = reward_pb2.ScoreRequest(request_id=request_id).SerializeToString()
    return data


def decode_sample(message: reward_pb2.Sample) -> RewardSample:
    """The message as a sample.

    Raises:
        ValueError: when a chat message has a role that does not exist.
    """
    return RewardSample(
        id=message.id,
        prompt=message.prompt,
        messages=_decode_messages(message.messages) if message.messages else (),
        completion=message.completion,
        token_ids=tuple(message.token_ids) if message.token_ids else (),
        reference=_decode_struct(message.reference),
        policy_version=message.policy_version,
        finish_reason=_FINISH_REASONS.get(message.finish_reason, "stop"),
        turns=_decode_messages(message.turns) if message.turns else (),
    )


def encode_result(sample_id: str, outcome: Reward | Failure) -> reward_pb2.Result:
    """The result of one sample as a message; a reward that cannot be sent becomes the failure that says so."""
    result = reward_pb2.Result()
    write_result(result, sample_id, outcome)
    return result


def write_result(result: reward_pb2.Result, sample_id: str, outcome: Reward | Failure) -> None:
    """As `encode_result`, into a message that is empty, such as one that a response has already."""
    try:
        result.sample_id = sample_id
        _write_outcome(result, outcome)
    except (TypeError, ValueError, OverflowError) as error:
        message = f"the reward's answer cannot be sent: {error}"
        result.ClearField("outcome")
        _write_outcome(result, Failure(code=FailureCode.INTERNAL, message=message))


def _write_outcome(result: reward_pb2.Result, outcome: Reward | Failure) -> None:
    if isinstance(outcome, Failure):
        message = outcome.message.encode(errors="replace").decode()
        code = f"FAILURE_CODE_{outcome.code.name}"
        result.failure.CopyFrom(reward_pb2.Failure(code=code, message=message, retryable=outcome.retryable))
        return
    reward = result.reward
    reward.value = outcome.value
    if outcome.version:
        reward.version = outcome.version
    if outcome.components:
        components = reward.components
        for name, value in outcome.components.items():
            components[name] = value
    for step in outcome.steps:
        reward.steps.add(start=step.start, end=step.end, value=step.value)


def decode_outcome(result: reward_pb2.Result, *, version: str = "") -> Reward | Failure | None:
    """The outcome in a result, whose rewards are of `version` where they name none; None where there is no outcome."""
    kind = result.WhichOneof("outcome")
    if kind == "reward":
        reward = result.reward
        return Reward(
            value=reward.value,
            components=dict(reward.components) if reward.components else {},
            steps=tuple(StepReward(start=s.start, end=s.end, value=s.value) for s in reward.steps),
            version=reward.version or version,
        )
    if kind == "failure":
        return Failure(
            code=_FAILURE_CODES.get(result.failure.code, FailureCode.INTERNAL),
            message=result.failure.message,
            retryable=result.failure.retryable,
        )
    return None


def encode_description(description: RewardDescription) -> reward_pb2.DescribeResponse:
    """A service's description of itself as a message."""
    return reward_pb2.DescribeResponse(
        name=description.name,
        version=description.version,
        needs_token_ids=description.needs_token_ids,
        minimum=description.minimum,
        maximum=description.maximum,
        max_batch_samples=description.max_batch_samples,
        contract_version=description.contract_version,
        max_request_bytes=description.max_request_bytes,
        gives_steps=description.gives_steps,
    )


def decode_description(message: reward_pb2.DescribeResponse) -> RewardDescription:
    """The message as a description, with the contract's defaults for what is not set."""
    return RewardDescription(
        name=message.name,
        version=message.version,
        needs_token_ids=message.needs_token_ids,
        minimum=message.minimum if message.HasField("minimum") else None,
        maximum=message.maximum if message.HasField("maximum") else None,
        max_batch_samples=message.max_batch_samples or DEFAULT_MAX_BATCH_SAMPLES,
        max_request_bytes=message.max_request_bytes or DEFAULT_MAX_REQUEST_BYTES,
        contract_version=message.contract_version or DEFAULT_CONTRACT_VERSION,
        gives_steps=message.gives_steps if message.HasField("gives_steps") else None,
    )


def _refuse_lossy(value: Json | Mapping[str, Json], where: str, level: int = 1) -> None:
    """Raise `ValueError` for what would not arrive. `level`: of the message that holds the value, below the request."""
    if level + isinstance(value, Mapping | list) > MAX_LEVELS:
        raise ValueError(f"{where[:60]}… is nested too deeply for protobuf ({MAX_LEVELS} levels, 3 for each object)")
    if isinstance(value, Mapping):
        for key, part in value.items():
            _refuse_lossy(part, f"{where}.{_text(key, where)}", level + 3)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _refuse_lossy(part, f"{where}[{index}]", level + 2)
    elif isinstance(value, str):
        _text(value, where)
    elif isinstance(value, int) and abs(value) > LARGEST_EXACT_INTEGER:
        raise ValueError(f"{where} is {value}, and integers beyond 2**53 lose digits on the way; give it as a string")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON does not have; give it as a string")
    elif value is not None and not isinstance(value, int | float):
        raise ValueError(f"{where} is a {type(value).__name__}, which JSON does not have")


def _text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        broken = f"U+{ord(text[error.start]):04X}"
        raise ValueError(f"{where} has the lone surrogate {broken} at character {error.start}; replace it") from error
    return text


def _role(role: str) -> Role:
    if role not in _ROLES:
        raise ValueError(f"a message has the role {role!r}; the roles are {', '.join(_ROLES)}")
    return _ROLES[role]


def _encode_messages(messages: Iterable[Message], kind: str) -> list[reward_pb2.Message]:
    return [reward_pb2.Message(role=message.role, content=_text(message.content, kind)) for message in messages]


def _decode_messages(messages: Iterable[reward_pb2.Message]) -> tuple[Message, ...]:
    return tuple(Message(role=_role(message.role), content=message.content) for message in messages)


def _decode_struct(struct: Struct) -> dict[str, Json]:
    fields = struct.fields
    return {key: _decode_value(fields[key]) for key in fields}  # Faster than its items(), which are made in Python.


def _decode_list(values: Iterable[Value]) -> list[Json]:
    return [_decode_value(value) for value in values]


def _decode_value(value: Value) -> Json:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _decode_struct(value.struct_value)
    if kind == "list_value":
        assert isinstance(value.list_value, ListValue)
        return _decode_list(value.list_value.values)
    if kind == "number_value":
        number = value.number_value
        is_whole = number.is_integer() and abs(number) <= LARGEST_EXACT_INTEGER
        return int(number) if is_whole else number
    if kind == "string_value":
        return value.string_value
    return value.bool_value if kind == "bool_value" else None
