"""The policy and its environment in turn, until one of them ends the dialogue.

It must not know weights, Ray or rewards. Invariants: an answer that did not come is never made up: after the last try
the group fails; every rollout ends with a token of the policy; all of its tokens after the prompt are at most
`max_completion_tokens`; each turn's seed follows from what it is.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from rollout_workers.chat_format import check_encodable
from rollout_workers.dialogue_tokens import DialogueTokens
from rollout_workers.engine_thread import EngineThread
from rollout_workers.environment_config import EnvironmentConfig
from rollout_workers.environments import Environment
from rollout_workers.traces import Trace
from services.contracts.dialogue import Dialogue
from services.contracts.errors import EnvironmentFailed
from services.contracts.records import Message, Rollout, RolloutGroup, SampleRequest
from services.transport.deadlines import soon
from services.transport.tasks import all_or_cancel

if TYPE_CHECKING:
    from rollout_workers.engine import Completion

_PAUSE_S = 0.05
"""Before the second try for an answer it is twice this, and doubles before each further one."""


class Dialogues:
    """Samples groups of dialogues.

    Args:
        config: how long they may go on, and how long an answer may take.
        environment: gives the answers.
        tokens: reads and writes them.
    """

    def __init__(self, config: EnvironmentConfig, environment: Environment, tokens: DialogueTokens) -> None:
        self._config = config
        self._environment = environment
        self._tokens = tokens
        self._room = asyncio.Semaphore(config.max_calls)

    async def sample(self, engine: EngineThread, request: SampleRequest) -> RolloutGroup:
        """As `EngineThread.sample`, each completion a dialogue.

        Raises:
            EnvironmentFailed: an answer did not come, after the last try.
            UserError, WeightSyncError, WorkerLost: as `EngineThread.sample`.
        """
        indices = range(request.sampling.num_samples)
        rollouts = await all_or_cancel(self._dialogue(engine, request, index) for index in indices)
        return RolloutGroup(prompt=request.prompt, rollouts=tuple(rollouts))

    async def _dialogue(self, engine: EngineThread, request: SampleRequest, index: int) -> Rollout:
        trace, longest = Trace(request.prompt), request.sampling.max_completion_tokens
        while True:
            said = await self._next_turn(engine, request, trace, index)
            trace.say(said, text=self._tokens.text(said.token_ids))
            finish_reason = said.finish_reason
            if finish_reason != "stop" or trace.num_turns == self._config.max_turns:
                break
            answer = await self._answer(trace)
            if answer is None:
                break
            token_ids = self._tokens.answer(answer, in_chat=bool(request.prompt.messages), after=trace.token_ids[-1])
            if trace.num_completion_tokens + len(token_ids) >= longest:
                finish_reason = "length"  # It would leave no room for a reply.
                break
            trace.read(token_ids, Message(role=self._config.role, content=answer))
        completion = self._tokens.text(trace.token_ids[len(request.prompt.token_ids) :])
        return trace.end(sample_index=index, completion=completion, finish_reason=finish_reason)

    async def _next_turn(self, engine: EngineThread, request: SampleRequest, trace: Trace, index: int) -> Completion:
        left = request.sampling.max_completion_tokens - trace.num_completion_tokens
        so_far = SampleRequest(
            prompt=replace(request.prompt, token_ids=trace.token_ids),
            sampling=replace(request.sampling, num_samples=1, max_completion_tokens=left),
        )
        (said,) = await asyncio.wrap_future(engine.sample(so_far, first=index, turn=trace.num_turns))
        return said

    async def _answer(self, trace: Trace) -> str | None:
        dialogue = trace.dialogue
        what = f"the answer of environment {self._config.name} to turn {dialogue.number} of prompt {trace.prompt.id}"
        faults: list[Exception] = []
        while len(faults) < self._config.max_attempts:
            if faults:
                await asyncio.sleep(_PAUSE_S * 2 ** len(faults))
            try:
                return await self._ask(dialogue, what)
            except Exception as error:  # noqa: BLE001  # The edge to the user's code, which may raise anything.
                faults.append(error)
        raise EnvironmentFailed(
            f"{what} did not come in {len(faults)} tries; the last: {type(faults[-1]).__name__}: {faults[-1]}. Mend "
            "the environment and resume the run; what the policy is to know of a failure, it answers as text"
        ) from faults[-1]

    async def _ask(self, dialogue: Dialogue, what: str) -> str | None:
        advice = "raise rollout.environment.timeout_s, or see what the environment waits for"
        async with self._room:
            answer: object = await soon(
                self._config.timeout_s, lambda: self._environment(dialogue), waited_for=what, advice=advice
            )
        if answer is None:
            return None
        if not isinstance(answer, str):
            raise TypeError(f"{answer!r:.80} is neither text, which is read to the policy, nor None, which ends it all")
        check_encodable(answer, "the answer")
        return answer
