"""1 when the Python program in a completion passes its tests, in a sandbox; 0 when it does not.

The reference holds the tests, in one or more of three forms:

    {"cases": [{"stdin": "3 4", "stdout": "7"}]}                             what the program prints
    {"function": "add", "calls": [{"args": [3, 4], "expected": 7}]}         what a function returns
    {"tests": ["assert add(3, 4) == 7"]}                                     code that calls the program

It must not know how programs are jailed. Invariants: what is expected stays in this process, or in the jail of the
tests, and never enters the program's; whatever a program does is worth a number, and only a reference without tests, or
a sandbox that is broken, is a `Failure`.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Literal

from pydantic import Field, ValidationError

from reward_server.config import RewardServerConfig
from reward_server.function import RewardFunction, Score
from reward_server.scorer import FunctionScorer, ScorerOptions
from reward_server.verdicts import FaultyTests, ProgramTests, same_output, verdicts_of_calls, verdicts_of_tests
from services.contracts.errors import UserError
from services.contracts.fences import last_fenced_block
from services.contracts.records import Failure, FailureCode, Json, Reward, RewardSample
from services.processes.sandbox import Sandbox, SandboxBroken, SandboxLimits

LANGUAGES = ("python", "python3", "py")
SPARE_S = 6.0
"""How much longer than a program the server waits for a sample, at least: time to end and to report."""


class CodeExecution(ScorerOptions):
    """Runs the completion's program against its prompt's tests; `server.num_threads` samples at the same time."""

    value: Literal["all", "share"] = "all"
    """all: 1 when every test passes, and no more are run once one failed; share: how many pass, from 0 to 1."""
    require_fence: bool = False
    """Take the program from a fenced block only (the last); where not set, a completion without a block is one."""
    tolerance: float = Field(default=1e-6, ge=0, lt=1)
    """Relative and absolute difference that is allowed between numbers that are no whole numbers."""
    wall_s: float = Field(default=10.0, gt=0)
    """Time for all runs of one completion, in seconds, however busy the machine is; must leave room in timeout_s."""
    limits: SandboxLimits = SandboxLimits()
    """What each run may use."""

    def scorer(self, config: RewardServerConfig) -> FunctionScorer:
        if self.wall_s + SPARE_S > config.timeout_s:
            raise UserError(
                f"code_execution gives a program {self.wall_s:g} s (wall_s) and the server gives a sample "
                f"{config.timeout_s:g} s (server.timeout_s), so that a program that sleeps would be a failure of the "
                f"reward instead of a 0; set timeout_s to {self.wall_s + SPARE_S:g} or more"
            )
        examiner = Examiner(self)
        digest = blake2b(self.model_dump_json().encode(), digest_size=4).hexdigest()
        function = RewardFunction(
            examiner.score,
            name="code_execution",
            version=f"2-{digest}",  # Servers that differ in their options alone must not pass for one reward.
            minimum=0.0,
            maximum=1.0,
            gives_steps=False,
            opened=examiner.opened,
        )
        return FunctionScorer(function, timeout_s=config.timeout_s, num_threads=config.num_threads)


class Examiner:
    """Scores programs in one sandbox, which is there while it is `opened`."""

    def __init__(self, options: CodeExecution) -> None:
        self._options = options
        self._sandbox = Sandbox(options.limits)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Keep the sandbox ready. Raises UserError where it cannot be built."""
        await self._sandbox.start()
        try:
            yield
        finally:
            await self._sandbox.close()

    async def score(self, sample: RewardSample) -> Score:
        try:
            return await self._mark(self._program_of(sample), tests_of(sample))
        except FaultyTests as error:
            return Failure(code=FailureCode.INVALID_SAMPLE, message=f"code_execution: {error}")
        except SandboxBroken as error:
            message = f"the sandbox is broken: {error}"
            return Failure(code=FailureCode.UNAVAILABLE, message=message, retryable=True)

    def _program_of(self, sample: RewardSample) -> str | None:
        program = last_fenced_block(sample.answer, languages=LANGUAGES)
        return sample.answer if program is None and not self._options.require_fence else program

    async def _mark(self, program: str | None, tests: ProgramTests) -> Reward:
        if program is None:
            return Reward(value=0.0, components={"passed": 0.0})
        passed: list[bool] = []
        async for verdicts in self._verdicts(f"{tests.preamble}\n{program}", tests):
            passed += verdicts
            if self._options.value == "all" and not all(passed):
                break
        share = sum(passed) / len(tests)
        return Reward(
            value=share if self._options.value == "share" else float(share == 1.0), components={"passed": share}
        )

    async def _verdicts(self, program: str, tests: ProgramTests) -> AsyncIterator[list[bool]]:
        """Whether each test passes, run by run, while there is time."""
        end, tolerance = time.monotonic() + self._options.wall_s, self._options.tolerance
        for case in tests.cases:
            if (wall_s := end - time.monotonic()) > 0:
                ended = await self._sandbox.run_script(program, case.stdin, wall_s=wall_s)
                yield [ended.exit_code == 0 and same_output(ended.output, case.stdout, tolerance)]
        if tests.function is not None and (wall_s := end - time.monotonic()) > 0:
            inputs: list[Json] = [{"args": list(call.args), "kwargs": call.kwargs} for call in tests.calls]
            ended = await self._sandbox.run_calls(program, tests.function, inputs, wall_s=wall_s)
            yield verdicts_of_calls(ended.output, tests.calls, tolerance)
        if tests.tests and (wall_s := end - time.monotonic()) > 0:
            ended = await self._sandbox.run_tests(program, tests.tests, wall_s=wall_s)
            yield verdicts_of_tests(ended.output, len(tests.tests))


def tests_of(sample: RewardSample) -> ProgramTests:
    """The tests in a sample's reference. Raises FaultyTests saying what is wrong with them."""
    known = {name: value for name, value in sample.reference.items() if name in ProgramTests.model_fields}
    try:
        return ProgramTests.model_validate(known)
    except ValidationError as error:
        faults = (f"reference.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise FaultyTests("; ".join(faults)) from error
