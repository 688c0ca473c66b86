"""Who samples what: membership, the queue of waiting requests, and the attempts under way, as pure state.

It owns no tasks, no workers and no clock. Invariants: a request that was submitted is waiting, under way in exactly one
attempt, or ended; an attempt ends once, and whatever arrives for it afterwards is fenced; a worker that drains or left
is given nothing; a worker is never given more than `max_outstanding` requests, so that a joiner finds work waiting;
while a worker is slow, requests wait for the others.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from rollout_workers.paces import Paces


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """One attempt at one request, by one worker."""

    attempt: int
    request: int
    worker: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """What a worker was given, and how many requests the others had ended by then."""

    request: int
    others_ended: int


@dataclass(kw_only=True, slots=True)
class Member:
    """A worker that takes part; only a serving one is given requests."""

    worker: int
    phase: Literal["serving", "draining"] = "serving"
    attempts: dict[int, Attempt] = field(default_factory=dict)
    num_ended: int = 0


class Dispatcher:
    """Decides; whoever drives it carries out.

    Args:
        max_outstanding: most requests that one worker holds.
        max_attempts: workers that may be lost over one request; a request that kills its worker each time must end.
    """

    def __init__(self, *, max_outstanding: int, max_attempts: int) -> None:
        self._max_outstanding = max_outstanding
        self._max_attempts = max_attempts
        self._waiting: deque[int] = deque()
        self._members: dict[int, Member] = {}
        self._losses: dict[int, int] = {}
        self._num_requests = 0
        self._num_attempts = 0
        self._paces = Paces()
        self._num_ended = 0

    @property
    def num_waiting(self) -> int:
        """Requests that no worker has."""
        return len(self._waiting)

    @property
    def num_serving(self) -> int:
        return sum(member.phase == "serving" for member in self._members.values())

    def outstanding(self, worker: int) -> int:
        """Requests that this worker has."""
        return len(self._members[worker].attempts) if worker in self._members else 0

    def is_serving(self, worker: int) -> bool:
        return worker in self._members and self._members[worker].phase == "serving"

    def is_slow(self, worker: int) -> bool:
        """Whether this worker takes so much longer than the others that it is given next to nothing."""
        return self._paces.is_slow(worker)

    def submit(self) -> int:
        """A new request, behind all others; returns its number."""
        request = self._num_requests
        self._num_requests += 1
        self._waiting.append(request)
        return request

    def forget(self, request: int) -> None:
        """Whoever submitted it wants it no more; an attempt under way is fenced."""
        if request in self._waiting:
            self._waiting.remove(request)
        for member in self._members.values():
            member.attempts = {number: made for number, made in member.attempts.items() if made.request != request}
        self._losses.pop(request, None)

    def join(self, worker: int) -> None:
        """The worker serves from now on."""
        assert worker not in self._members, f"worker {worker} joined twice"
        self._members[worker] = Member(worker=worker)

    def drain(self, worker: int) -> None:
        """The worker is given nothing more."""
        self._members[worker].phase = "draining"
        self._paces.forget(worker)

    def leave(self, worker: int, *, at_fault: bool) -> tuple[list[Assignment], list[Assignment]]:
        """The worker is gone: its requests go to the front of the queue, the oldest first.

        Args:
            at_fault: it was lost, so that each of its requests used up one of its attempts.

        Returns:
            The attempts whose requests wait again, and those whose requests have used up their attempts and end here.
        """
        member = self._members.pop(worker)
        self._paces.forget(worker)
        again: list[Assignment] = []
        ended: list[Assignment] = []
        for number, made in sorted(member.attempts.items(), key=lambda item: item[1].request):
            self._losses[made.request] = self._losses.get(made.request, 0) + at_fault
            spent = self._losses[made.request] >= self._max_attempts
            (ended if spent else again).append(Assignment(attempt=number, request=made.request, worker=worker))
        self._waiting.extendleft(assignment.request for assignment in reversed(again))
        for assignment in ended:
            del self._losses[assignment.request]
        return again, ended

    def end(self, assignment: Assignment, *, seconds: float = 0.0, num_tokens: int = 0) -> bool:
        """The worker has answered. False: the attempt had ended before, and the answer must be ignored.

        Args:
            seconds: how long it took.
            num_tokens: of the longest completion; 0 where there is none to measure the worker by.
        """
        member = self._members.get(assignment.worker)
        attempt = member.attempts.pop(assignment.attempt, None) if member else None
        if member is None or attempt is None:
            return False
        self._losses.pop(assignment.request, None)
        others_ended = self._num_ended - member.num_ended - attempt.others_ended
        self._num_ended += 1
        member.num_ended += 1
        if num_tokens and member.phase == "serving":
            self._paces.learn(member.worker, seconds=seconds, num_tokens=num_tokens, others_ended=others_ended)
        return True

    def next_assignment(self) -> Assignment | None:
        """The oldest waiting request, for the least loaded worker; ties go to the lowest number."""
        free = [
            member
            for member in self._members.values()
            if member.phase == "serving"
            and len(member.attempts) < self._max_outstanding
            and self._paces.is_wanted(member.worker)
        ]
        if not self._waiting or not free:
            return None
        member = min(free, key=lambda member: (len(member.attempts), member.worker))
        assignment = Assignment(attempt=self._num_attempts, request=self._waiting.popleft(), worker=member.worker)
        self._num_attempts += 1
        member.attempts[assignment.attempt] = Attempt(
            request=assignment.request, others_ended=self._num_ended - member.num_ended
        )
        self._paces.give(member.worker)
        return assignment
