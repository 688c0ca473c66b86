"""The dispatcher against a model of it: whatever comes, no request is lost, doubled or given to the wrong worker."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rollout_workers.dispatch import Assignment, Dispatcher

MAX_OUTSTANDING = 2
MAX_ATTEMPTS = 3


class DispatcherMachine(RuleBasedStateMachine):
    """Knows only what it asked for and was told."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher(max_outstanding=MAX_OUTSTANDING, max_attempts=MAX_ATTEMPTS)
        self.waiting: list[int] = []
        self.under_way: dict[int, Assignment] = {}
        self.over: list[Assignment] = []
        self.losses: dict[int, int] = {}
        self.serving: set[int] = set()
        self.draining: set[int] = set()
        self.num_workers = 0

    @rule()
    def submit(self) -> None:
        self.waiting.append(self.dispatcher.submit())

    @rule()
    def join(self) -> None:
        self.dispatcher.join(self.num_workers)
        self.serving.add(self.num_workers)
        self.num_workers += 1

    @precondition(lambda self: self.serving)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.serving)))
        self.dispatcher.drain(worker)
        self.serving.remove(worker)
        self.draining.add(worker)

    @rule()
    def hand_out(self) -> None:
        loads = {worker: self.dispatcher.outstanding(worker) for worker in self.serving}
        assignment = self.dispatcher.next_assignment()
        free = {worker: load for worker, load in loads.items() if load < MAX_OUTSTANDING}
        if not self.waiting or not free:
            assert assignment is None
            return
        assert assignment is not None
        assert assignment.request == self.waiting.pop(0)
        assert assignment.worker == min(free, key=lambda worker: (free[worker], worker))
        assert assignment.attempt not in {past.attempt for past in (*self.over, *self.under_way.values())}
        self.under_way[assignment.request] = assignment

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        assignment = self.under_way.pop(data.draw(st.sampled_from(sorted(self.under_way))))
        assert self.dispatcher.end(assignment)
        self.over.append(assignment)
        self.losses.pop(assignment.request, None)

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def late_answer(self, data: st.DataObject) -> None:
        assert not self.dispatcher.end(data.draw(st.sampled_from(self.over)))

    @precondition(lambda self: self.under_way or self.waiting)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted([*self.under_way, *self.waiting])))
        self.dispatcher.forget(request)
        self.losses.pop(request, None)
        if request in self.waiting:
            self.waiting.remove(request)
        else:
            self.over.append(self.under_way.pop(request))

    @precondition(lambda self: self.serving or self.draining)
    @rule(data=st.data(), at_fault=st.booleans())
    def leave(self, data: st.DataObject, at_fault: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.serving | self.draining)))
        self.serving.discard(worker)
        self.draining.discard(worker)
        held = sorted(request for request, assignment in self.under_way.items() if assignment.worker == worker)
        for request in held:
            self.losses[request] = self.losses.get(request, 0) + at_fault
        spent = [request for request in held if self.losses[request] >= MAX_ATTEMPTS]
        again, ended = self.dispatcher.leave(worker, at_fault=at_fault)
        assert [assignment.request for assignment in again] == [request for request in held if request not in spent]
        assert [assignment.request for assignment in ended] == spent
        assert {*again, *ended} == {self.under_way[request] for request in held}
        self.over += [self.under_way.pop(request) for request in held]
        self.waiting = [assignment.request for assignment in again] + self.waiting
        for request in spent:
            del self.losses[request]

    @invariant()
    def the_numbers_agree(self) -> None:
        assert self.dispatcher.num_waiting == len(self.waiting)
        assert self.dispatcher.num_serving == len(self.serving)
        for worker in range(self.num_workers):
            held = sum(assignment.worker == worker for assignment in self.under_way.values())
            assert self.dispatcher.outstanding(worker) == held <= MAX_OUTSTANDING
            assert self.dispatcher.is_serving(worker) == (worker in self.serving)


DispatcherMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDispatcher = DispatcherMachine.TestCase
