"""Programs are worth what their tests say: of every kind, for honest and for wrong ones, under load, over gRPC."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from reward_server.assembly import build_scorer
from reward_server.config import RewardServerConfig, RewardServiceConfig
from reward_server.rewards.code_execution import CodeExecution, Examiner
from reward_server.rewards.code_execution import tests_of as program_tests
from reward_server.verdicts import same_output, same_value
from services.contracts.errors import UserError
from services.contracts.records import Failure, FailureCode, Json, Reward, RewardSample
from services.processes.sandbox import SandboxLimits
from services.transport.reward_client import RewardClient
from tests.reward_server.serving import make_sample, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADD = "def add(a, b):\n    return a + b"
SUM = "print(sum(map(int, input().split())))"
CASES: Json = [{"stdin": "3 4", "stdout": "7\n"}, {"stdin": "1 1", "stdout": "2"}]
CALLS: Json = [
    {"args": [3, 4], "expected": 7},
    {"args": [[1], [2]], "expected": [1, 2]},
    {"kwargs": {"a": "x", "b": "y"}, "expected": "xy"},
]
STACK = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, index): return self.items[index]
def evens():
    number = 0
    while True:
        yield number
        number += 2
def root(number):
    if number < 0: raise ValueError("negative")
    return number ** 0.5
"""
STACK_TESTS: list[Json] = [
    "stack = Stack()\nstack.push(3)\nstack.push((1, {2}))\nassert len(stack) == 2 and list(stack) == [3, (1, {2})]",
    "stack = Stack()\nstack.push(5)\nassert stack[0] == 5 and stack.items == [5] and stack.pop() == 5",
    "from itertools import islice\nassert list(islice(evens(), 3)) == [0, 2, 4]",
    "try:\n    root(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert False",
    """
import math
def check(candidate):
    for n in range(5):
        assert math.isclose(candidate(n * n), n)
check(root)""",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def all_pass() -> AsyncIterator[Examiner]:
    async for examiner in opened(CodeExecution()):
        yield examiner


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def share() -> AsyncIterator[Examiner]:
    async for examiner in opened(CodeExecution(value="share", limits=SandboxLimits(cpu_s=1), wall_s=8.0)):
        yield examiner


async def opened(options: CodeExecution) -> AsyncIterator[Examiner]:
    examiner = Examiner(options)
    try:
        async with examiner.opened():
            yield examiner
    except UserError as error:
        pytest.skip(str(error))


async def value(examiner: Examiner, program: str, **reference: Json) -> float:
    outcome = await examiner.score(make_sample(completion=f"So:\n```python\n{program}\n```\n", **reference))
    assert isinstance(outcome, Reward), outcome
    assert outcome.value == outcome.components["passed"] or outcome.value == 0.0
    return outcome.value


async def test_right_programs_pass_and_wrong_ones_do_not(all_pass: Examiner) -> None:
    assert await value(all_pass, SUM, cases=CASES) == 1.0
    assert await value(all_pass, "print(7)", cases=CASES) == 0.0
    assert await value(all_pass, ADD, function="add", calls=CALLS) == 1.0
    assert await value(all_pass, ADD.replace("+", "*"), function="add", calls=CALLS) == 0.0
    assert await value(all_pass, "def f(): 1 / 0", function="f", calls=[{"expected": None}]) == 0.0
    assert await value(all_pass, "def f(): pass", function="f", calls=[{"expected": None}]) == 1.0
    assert await value(all_pass, ADD, tests="assert add(3, 4) == 7") == 1.0
    assert await value(all_pass, ADD, tests="assert add(3, 4) == 8") == 0.0
    assert await value(all_pass, f"{ADD}\n{SUM}", cases=CASES, tests="assert add(1, 1) == 2") == 0.0  # It reads.
    assert await value(all_pass, "    return a + b", preamble="def add(a, b):", tests="assert add(1, 2) == 3") == 1.0
    assert await value(all_pass, "class S:\n def add(self, a, b): return a + b", function="S().add", calls=CALLS) == 1.0


async def test_tests_use_objects_generators_exceptions_and_helpers_of_their_own(all_pass: Examiner) -> None:
    assert await value(all_pass, STACK, tests=STACK_TESTS) == 1.0


async def test_a_share_counts_what_passes(share: Examiner) -> None:
    assert await value(share, "print(7)", cases=CASES) == 0.5
    assert await value(share, "def add(a, b):\n    return int(a) + int(b)", function="add", calls=CALLS) == 1 / 3
    assert await value(share, STACK.replace("** 0.5", "/ 2"), tests=STACK_TESTS) == 4 / 5
    assert await value(share, SUM, cases=CASES, tests="assert add(1, 1) == 2") == 2 / 3


async def test_the_program_is_the_last_block_or_the_completion() -> None:
    sample = RewardSample(id="a", completion="```python\nprint(2)\n```\nOutput:\n```\n2\n```\n```json\n{}\n```")
    strict, lenient = Examiner(CodeExecution(require_fence=True)), Examiner(CodeExecution())
    bare = RewardSample(id="a", completion="print(3)", reference={"tests": "pass"})
    assert strict._program_of(sample) == lenient._program_of(sample) == "print(2)"
    assert lenient._program_of(bare) == "print(3)"
    assert await strict.score(bare) == Reward(value=0.0, components={"passed": 0.0})


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ({"answer": "7"}, "nothing to test a program by"),
        ({"cases": [{"stdin": "1"}]}, "reference.cases.0.stdout"),
        ({"calls": CALLS}, "need each other"),
        ({"cases": "[{"}, "reference.cases"),
        ({"cases": [{"stdout": "1", "output": "2"}]}, "output"),
        ({"tests": "assert ("}, "SyntaxError"),
        ({"tests": "\0"}, "null bytes"),
        ({"tests": "add(lambda: 0, 1)"}, "function is no plain data"),
    ],
)
async def test_a_reference_that_is_no_test_fails_its_sample(
    all_pass: Examiner, reference: dict[str, Json], words: str
) -> None:
    outcome = await all_pass.score(make_sample(completion=ADD, **reference))
    assert isinstance(outcome, Failure) and outcome.code is FailureCode.INVALID_SAMPLE
    assert words in outcome.message


async def test_lists_may_be_given_as_json_text() -> None:
    tests = program_tests(make_sample(function="f", calls='[{"args": [2.0], "expected": 12345678901234567890}]'))
    assert tests.calls[0].args == (2.0,) and tests.calls[0].expected == 12345678901234567890


async def test_a_program_gets_less_time_than_the_server_gives_a_sample() -> None:
    with pytest.raises(UserError, match="set timeout_s to 36 or more"):
        CodeExecution(wall_s=30.0).scorer(RewardServerConfig(port=0, timeout_s=20.0))
    with pytest.raises(ValidationError):
        CodeExecution(limits=SandboxLimits(cpu_s=0))


async def test_options_are_part_of_the_version() -> None:
    config = RewardServerConfig(port=0)
    versions = {
        options.scorer(config).description.version for options in (CodeExecution(), CodeExecution(value="share"))
    }
    assert len(versions) == 2


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        (b"1 2\n", "1 2", True),
        (b"1 2  \n\n", "1 2\n", True),
        (b" 1   2", "1 2", True),
        (b"1\n2", "1 2", False),
        (b"0.30000000000000004", "0.3", True),
        (b"0.31", "0.3", False),
        (b"3", "3.0", True),
        (b"3.0", "3", False),
        (b"nan", "0.5", False),
        (b"\xff", "", False),
        (b"", "", True),
        (None, "", False),
    ],
)
async def test_output_is_compared_line_by_line(output: bytes | None, expected: str, same: bool) -> None:
    assert same_output(output, expected, 1e-6) is same


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (7, 7, True),
        (7.0, 7, True),
        (0.1 + 0.2, 0.3, True),
        (True, 1, False),
        (1, True, False),
        (None, None, True),
        (0, None, False),
        ((1, [2]), [1, [2]], True),
        ([1], [1, 2], False),
        ({2, 1}, [1, 2], True),
        ({1}, [1, 2], False),
        ({1: (2,)}, {"1": [2]}, True),
        ({"a": 1}, {"b": 1}, False),
        ("1", 1, False),
        (b"1", "1", False),
        (float("nan"), 1.0, False),
        (10**400, 1.0, False),
    ],
)
async def test_values_are_compared_in_the_terms_of_json(found: object, expected: Json, same: bool) -> None:
    assert same_value(found, expected, 1e-6) is same


HOSTILE = [
    "while True: pass",
    "import time; time.sleep(60)",
    "while True: print('x' * 1000)",
    "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "hoard = []\nwhile True: hoard.append(bytes(1 << 20))",
    "import threading\nwhile True:\n  try: threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\n  except RuntimeError: pass",  # noqa: E501
    "print(10 ** 10 ** 9)",
    "import os; os.kill(-1, 9); os._exit(0)",
]


async def test_while_hostile_programs_run_an_honest_one_is_scored_and_health_answers() -> None:
    config = RewardServerConfig(port=0, num_threads=24, drain_s=0.0, timeout_s=30.0)
    options = {"wall_s": 6.0, "limits": {"cpu_s": 1, "memory_bytes": 128 << 20}}
    service = RewardServiceConfig(name="code_execution", options=options)
    samples = [
        make_sample(index, completion=program, cases=CASES) for index, program in enumerate([*HOSTILE, *HOSTILE])
    ]
    try:
        async with (
            serving(build_scorer([service], config), config) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            hostile_client, client = RewardClient([address]), RewardClient([address])
            await client.describe()
            hostile = asyncio.ensure_future(hostile_client.score(samples))
            num_honest, slowest = 0, 0.0
            while not hostile.done():
                started = time.monotonic()
                (honest,) = await client.score([make_sample(completion=SUM, cases=CASES)])
                health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2.0)
                slowest = max(slowest, time.monotonic() - started)
                assert isinstance(honest, Reward) and honest.value == 1.0
                assert health.status == health_pb2.HealthCheckResponse.SERVING
                num_honest += 1
            outcomes = await hostile
            await hostile_client.close()
            await client.close()
    except UserError as error:
        pytest.skip(str(error))

    assert [outcome.value for outcome in outcomes if isinstance(outcome, Reward)] == [0.0] * len(samples)
    assert num_honest >= 5 and slowest < 6.0
