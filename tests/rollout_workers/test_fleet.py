"""The fleet on virtual time: who is brought up, probed, replaced, drained, and when it gives up."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from rollout_workers.config import RolloutConfig
from rollout_workers.fleet import Fleet, LaunchedWorker
from rollout_workers.pool import RolloutPool
from rollout_workers.sleeping import all_asleep
from services.contracts.errors import DeadlineExceeded, RunFolderError, TriremeError, UserError, WorkerLost
from services.contracts.records import Publication, RolloutGroup, SampleRequest, Sampling, SyncReceipt
from tests.fakes import FakeLearner, FakeWorker, make_prompt
from tests.simulation.virtual_time import VirtualTimeLoop

LAUNCH_S = 4.0


class Machine(FakeWorker):
    """A worker with a process; calls fail with `error`, and while it is frozen a probe runs into its deadline."""

    node, pid = "here", 7

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.is_frozen = False
        self.was_stopped = False
        self.is_asleep = False

    async def health(self) -> int:
        if self.is_frozen:
            await asyncio.sleep(5.0)
            raise DeadlineExceeded(waited_for="one token", waited_s=5.0, advice="replace this worker")
        return await super().health()

    async def load_weights(self, publication: Publication) -> SyncReceipt:
        await asyncio.sleep(1.0)
        return await super().load_weights(publication)

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        await asyncio.sleep(30.0)
        return await super().sample(request)

    async def sleep(self) -> None:
        self.is_asleep = True

    async def stop(self) -> None:
        self.was_stopped = True


class Setting:
    """A fleet whose launches fail as `errors` says, in order; it keeps what happened, while the disk has room."""

    def __init__(self, *, gpu: asyncio.Lock | None = None, **config: object) -> None:
        settings = {"num_workers": 1, "max_workers": 4, "max_restarts": 10} | config
        self.config = RolloutConfig.model_validate(settings)
        self.errors: list[TriremeError | None] = []
        self.machines: dict[int, Machine] = {}
        self.launches: list[float] = []
        self.launch_s: dict[int, float] = {}
        self.left: dict[int, str] = {}
        self.disk_is_full = False
        self.pool = RolloutPool()
        self.fleet = Fleet(self.pool, self, self.config, watcher=self, gpu=gpu)

    async def launch(self, number: int) -> Machine:
        self.launches.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.launch_s.get(number, LAUNCH_S))
        if self.errors and (error := self.errors.pop(0)):
            raise error
        self.machines[number] = Machine(number)
        return self.machines[number]

    def on_joined(self, number: int, worker: LaunchedWorker) -> None:
        self._write()

    def on_left(self, number: int, reason: str) -> None:
        self._write()
        self.left[number] = reason

    def _write(self) -> None:
        if self.disk_is_full:
            raise RunFolderError("events.jsonl cannot be written")

    @property
    def phases(self) -> dict[int, str]:
        return {status.worker: status.phase for status in self.fleet.status()}


def play(setting: Setting, story: Callable[[], Awaitable[None]]) -> None:
    """Run a story on virtual time, and end the fleet."""

    async def main() -> None:
        try:
            await story()
        finally:
            await setting.fleet.stop()

    loop = VirtualTimeLoop()
    loop.run(main())
    assert loop.faults == []


def request() -> SampleRequest:
    return SampleRequest(prompt=make_prompt(0), sampling=Sampling(num_samples=1, max_completion_tokens=4))


def test_a_worker_that_misses_three_probes_is_ended_and_replaced_within_its_time() -> None:
    setting = Setting()

    async def story() -> None:
        await setting.fleet.start(1)
        setting.machines[0].is_frozen = True
        await asyncio.sleep(3 * (2.0 + 5.0) + 0.1)
        assert setting.left[0] == "it gave no token in 3 probes of 5 s"
        await asyncio.sleep(LAUNCH_S + 1.0)
        assert setting.machines[0].was_stopped
        assert setting.phases == {1: "serving"}

    play(setting, story)


def test_where_a_gpu_is_shared_no_worker_starts_or_wakes_while_the_learner_trains() -> None:
    gpu = asyncio.Lock()
    setting = Setting(gpu=gpu)

    async def story() -> None:
        await setting.fleet.start(1)
        await setting.pool.load_weights(await FakeLearner().publish(3))
        async with all_asleep(gpu, lambda: [setting.machines[0]]):
            setting.pool.lose(0, "it died")
            await asyncio.sleep(60.0)
            assert len(setting.launches) == 1
        ended = asyncio.get_running_loop().time()
        await asyncio.sleep(0.1)
        assert setting.launches[1:] == [ended]

        async with all_asleep(gpu, lambda: [setting.machines[1]]):
            assert asyncio.get_running_loop().time() == ended + LAUNCH_S + 1.0
            assert (setting.phases, setting.pool.version(1)) == ({1: "serving"}, 3)
            assert setting.machines[1].is_asleep

    play(setting, story)


def test_a_joiner_loads_the_newest_weights_before_it_serves() -> None:
    setting = Setting()

    async def story() -> None:
        await setting.fleet.start(1)
        await setting.pool.load_weights(await FakeLearner().publish(3))
        setting.fleet.scale(2)
        await asyncio.sleep(LAUNCH_S + 0.5)
        assert setting.phases == {0: "serving", 1: "loading"}
        await asyncio.sleep(1.0)
        assert setting.phases == {0: "serving", 1: "serving"}
        assert setting.pool.version(1) == 3

    play(setting, story)


def test_scaling_down_lets_a_worker_end_its_groups_for_a_while_and_hands_over_the_rest() -> None:
    setting = Setting(num_workers=2, drain_timeout_s=10.0)

    async def story() -> None:
        await setting.fleet.start(2)
        groups = [asyncio.create_task(setting.pool.sample(request())) for _ in range(2)]
        await asyncio.sleep(25.0)
        setting.fleet.scale(1)
        assert setting.phases == {0: "serving", 1: "draining"}
        await asyncio.sleep(6.0)
        assert setting.left == {1: "drained"}
        assert all(group.done() for group in groups)

        setting.fleet.scale(2)
        await asyncio.sleep(LAUNCH_S + 1.0)
        late = [asyncio.create_task(setting.pool.sample(request())) for _ in range(2)]
        await asyncio.sleep(1.0)
        setting.fleet.scale(1)
        await asyncio.sleep(10.5)
        assert setting.left[2] == "drained; what it had not ended went to others"
        assert setting.machines[2].was_stopped
        await asyncio.gather(*late)

    play(setting, story)


def test_a_worker_that_dies_while_it_drains_is_let_go_and_costs_no_place() -> None:
    setting = Setting(num_workers=2, max_restarts=0, drain_timeout_s=60.0)

    async def story() -> None:
        await setting.fleet.start(2)
        groups = [asyncio.create_task(setting.pool.sample(request())) for _ in range(2)]
        await asyncio.sleep(1.0)
        setting.fleet.scale(1)
        setting.machines[1].error = WorkerLost("killed")
        await asyncio.gather(*groups)
        assert setting.left == {1: "killed"}
        assert (setting.fleet.target, setting.phases) == (1, {0: "serving"})

    play(setting, story)


def test_a_worker_that_is_still_starting_is_the_first_to_go() -> None:
    setting = Setting()

    async def story() -> None:
        await setting.fleet.start(1)
        setting.fleet.scale(3)
        await asyncio.sleep(1.0)
        setting.fleet.scale(1)
        await asyncio.sleep(LAUNCH_S)
        assert (setting.phases, list(setting.machines)) == ({0: "serving"}, [0])

    play(setting, story)


@pytest.mark.parametrize("wanted", [0, 5])
def test_a_number_out_of_bounds_is_refused_with_both_bounds(wanted: int) -> None:
    setting = Setting()

    async def story() -> None:
        await setting.fleet.start(1)
        with pytest.raises(UserError, match=rf"{wanted} rollout workers .*min_workers is 1 .*max_workers 4"):
            setting.fleet.scale(wanted)
        assert setting.fleet.target == 1

    play(setting, story)


def test_a_lost_worker_is_ended_where_that_cannot_be_written_down_and_so_are_all_requests() -> None:
    setting = Setting(num_workers=2)

    async def story() -> None:
        await setting.fleet.start(2)
        group = asyncio.create_task(setting.pool.sample(request()))
        setting.machines[1].error = WorkerLost("killed")
        setting.disk_is_full = True
        with pytest.raises(RunFolderError):
            await asyncio.wait_for(group, 60.0)
        setting.disk_is_full = False
        await asyncio.sleep(60.0)
        assert setting.machines[1].was_stopped
        assert (setting.phases, len(setting.launches)) == ({0: "serving"}, 2)

    play(setting, story)


def test_a_worker_whose_coming_cannot_be_written_down_does_not_serve() -> None:
    setting = Setting()

    async def story() -> None:
        await setting.fleet.start(1)
        setting.fleet.scale(2)
        setting.disk_is_full = True
        await asyncio.sleep(60.0)
        setting.disk_is_full = False
        assert setting.machines[1].was_stopped
        assert (setting.phases, len(setting.launches)) == ({0: "serving"}, 2)
        with pytest.raises(RunFolderError):
            await setting.pool.sample(request())

    play(setting, story)


def test_the_end_of_a_run_ends_what_was_being_ended_though_it_cannot_be_written_down() -> None:
    setting = Setting(num_workers=2)

    async def story() -> None:
        await setting.fleet.start(2)
        setting.pool.lose(1, "killed")
        setting.disk_is_full = True
        with pytest.raises(RunFolderError):
            await setting.fleet.stop()
        assert setting.machines[1].was_stopped

    play(setting, story)


def test_launches_that_fail_are_tried_again_after_pauses_that_grow() -> None:
    setting = Setting()

    async def story() -> None:
        await setting.fleet.start(1)
        setting.errors = [WorkerLost("out of memory"), UserError("no room"), WorkerLost("out of memory")]
        setting.fleet.scale(2)
        await asyncio.sleep(2 * LAUNCH_S + 1.0)
        assert setting.fleet.trouble == "rollout worker 2 is lost: it did not come up: no room"
        await asyncio.sleep(50.0)
        assert setting.fleet.trouble == ""
        starts = setting.launches[1:]
        pauses = [later - earlier - LAUNCH_S for earlier, later in itertools.pairwise(starts)]
        assert pauses == pytest.approx([0.0, 0.5, 1.0])
        assert setting.phases == {0: "serving", 4: "serving"}

    play(setting, story)


def test_a_worker_for_which_there_is_no_room_waits_for_it_as_long_as_others_serve() -> None:
    setting = Setting(num_workers=2, max_restarts=1)

    async def story() -> None:
        await setting.fleet.start(2)
        setting.errors = [UserError("no room")] * 12
        setting.machines[0].error = WorkerLost("its machine is gone")
        await asyncio.sleep(240.0)
        assert (setting.fleet.target, setting.fleet.num_serving) == (2, 1)
        assert setting.fleet.trouble.endswith("it did not come up: no room")
        setting.errors = []
        await asyncio.sleep(60.0)
        assert (setting.fleet.num_serving, setting.fleet.trouble) == (2, "")

    play(setting, story)


def test_without_any_other_the_waiting_for_room_ends() -> None:
    setting = Setting(max_restarts=3)

    async def story() -> None:
        await setting.fleet.start(1)
        setting.errors = [UserError("no room")] * 4
        setting.machines[0].error = WorkerLost("its machine is gone")
        with pytest.raises(
            WorkerLost, match=r"max_restarts \(3 in 3600 s\) is spent; .* because it did not come up: no room"
        ):
            await setting.pool.sample(request())

    play(setting, story)


def test_when_the_budget_is_spent_it_goes_on_with_fewer_and_without_any_it_says_why() -> None:
    setting = Setting(num_workers=2, max_restarts=0)

    async def story() -> None:
        await setting.fleet.start(2)
        setting.machines[0].error = WorkerLost("killed")
        await asyncio.sleep(3.0)
        assert (setting.fleet.target, setting.phases) == (1, {1: "serving"})
        group = asyncio.create_task(setting.pool.sample(request()))
        setting.machines[1].error = WorkerLost("killed too")
        with pytest.raises(WorkerLost, match=r"max_restarts \(0 in 3600 s\) is spent; .* because killed too"):
            await group
        with pytest.raises(WorkerLost, match="is spent"):
            await setting.pool.sample(request())

    play(setting, story)


def test_a_first_worker_that_does_not_come_up_is_an_error_at_once() -> None:
    setting = Setting(num_workers=2)
    setting.errors = [None, UserError("no room for rollout worker 1")]

    async def story() -> None:
        with pytest.raises(UserError, match="no room"):
            await setting.fleet.start(2)

    play(setting, story)
    assert setting.left == {0: "the run ended"}


def test_when_a_first_worker_does_not_come_up_no_other_comes_up_later() -> None:
    setting = Setting(num_workers=2)
    setting.errors = [UserError("no room for rollout worker 0"), None]
    setting.launch_s[1] = LAUNCH_S + 1

    async def story() -> None:
        with pytest.raises(UserError, match="no room"):
            await setting.fleet.start(2)
        await asyncio.sleep(10.0)
        assert setting.machines == {} and setting.fleet.num_serving == 0

    play(setting, story)
