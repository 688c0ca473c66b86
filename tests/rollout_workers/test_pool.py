"""The pool on fake workers: dispatch, requeue, weight loads, joining and leaving."""

import asyncio

import pytest

from rollout_workers.dispatch import Assignment
from rollout_workers.pool import RolloutPool
from services.contracts.errors import CanaryMismatch, DeadlineExceeded, RunFolderError, TriremeError, WorkerLost
from services.contracts.records import Canary, Publication, SampleRequest, Sampling, SyncReceipt, WeightManifest
from tests.fakes import FakeWorker, make_prompt


def request(row: int) -> SampleRequest:
    return SampleRequest(prompt=make_prompt(row), sampling=Sampling(num_samples=2, max_completion_tokens=4))


def publication(version: int) -> Publication:
    canary = Canary(sequences=(), logprobs=(), tolerance=1.0)
    manifest = WeightManifest(version=version, tensors=(), bucket_bytes=(), checksums=(), canary=canary)
    return Publication(transport="fake", manifest=manifest, locations=())


class FullDisk:
    """A watcher that cannot write down the events of this name, from the second on, and `synced` at all."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._num_seen = 0

    def on_attempt(self, event: str, prompt_id: str, assignment: Assignment, detail: int | str | None) -> None:
        self._num_seen += event == self._event
        if self._num_seen > 1:
            raise RunFolderError("events.jsonl cannot be written")

    def on_synced(self, receipt: SyncReceipt, publication: Publication) -> None:
        raise RunFolderError("events.jsonl cannot be written")


def rows(worker: FakeWorker) -> list[int]:
    return [request.prompt.row for request in worker.rollouts.requests]


async def turns_of_the_loop() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_request_goes_to_the_worker_with_the_fewest_outstanding_and_ties_to_the_first() -> None:
    workers = [FakeWorker(number, open=False) for number in range(3)]
    pool = RolloutPool(workers)
    tasks = [asyncio.create_task(pool.sample(request(row))) for row in range(4)]
    await turns_of_the_loop()
    assert [rows(worker) for worker in workers] == [[0, 3], [1], [2]]

    workers[2].release()
    await tasks[2]
    tasks.append(asyncio.create_task(pool.sample(request(4))))
    await turns_of_the_loop()

    assert rows(workers[2]) == [2, 4]
    for worker in workers:
        worker.release()
    groups = await asyncio.gather(*tasks)
    assert [group.prompt.row for group in groups] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
async def test_what_is_sampled_does_not_depend_on_how_many_workers_share_the_prompts(num_workers: int) -> None:
    pool = RolloutPool([FakeWorker(number) for number in range(num_workers)])
    alone = FakeWorker()

    groups = await asyncio.gather(*(pool.sample(request(row)) for row in range(8)))

    assert groups == [await alone.sample(request(row)) for row in range(8)]


async def test_the_request_of_a_worker_that_died_goes_to_another_which_samples_the_same() -> None:
    dead, alive = FakeWorker(error=WorkerLost("killed")), FakeWorker()
    pool = RolloutPool([dead, alive])

    group = await pool.sample(request(0))

    assert group == await FakeWorker().sample(request(0))
    assert list(pool.workers) == [alive]


async def test_a_request_over_which_too_many_workers_died_ends_with_that_error() -> None:
    workers = [FakeWorker(error=WorkerLost(f"killed {number}")) for number in range(3)]
    pool = RolloutPool(workers, max_attempts=2)

    with pytest.raises(WorkerLost, match=r"2 rollout workers .* prompt 0-0; the last: killed 1"):
        await pool.sample(request(0))

    assert list(pool.workers) == workers[2:]


async def test_requests_that_no_worker_has_room_for_wait_for_whoever_has_it_first() -> None:
    workers = [FakeWorker(number, open=False) for number in range(2)]
    pool = RolloutPool(workers[:1], max_outstanding=2)
    tasks = [asyncio.create_task(pool.sample(request(row))) for row in range(4)]
    await turns_of_the_loop()
    assert (rows(workers[0]), pool.num_waiting) == ([0, 1], 2)

    await pool.add(1, workers[1])
    await turns_of_the_loop()

    assert (rows(workers[1]), pool.num_waiting) == ([2, 3], 0)
    for worker in workers:
        worker.release()
    assert len(await asyncio.gather(*tasks)) == 4


async def test_a_late_answer_of_a_worker_that_was_lost_is_ignored() -> None:
    thawed, other = FakeWorker(0, open=False), FakeWorker(1)
    seen: list[str] = []

    class Watcher:
        def on_attempt(self, event: str, prompt_id: str, assignment: Assignment, detail: int | str | None) -> None:
            seen.append(f"{event} {assignment.attempt} {assignment.worker}")

        def on_synced(self, receipt: SyncReceipt, publication: Publication) -> None:
            raise AssertionError("nothing was published")

    pool = RolloutPool([thawed, other], watcher=Watcher())
    task = asyncio.create_task(pool.sample(request(0)))
    await turns_of_the_loop()
    pool.lose(0, "three probes missed")
    await task

    thawed.release()
    await turns_of_the_loop()

    assert seen == ["dispatched 0 0", "requeued 0 0", "dispatched 1 1", "fenced 0 0"]


async def test_an_attempt_that_cannot_be_written_down_is_not_made_and_ends_every_request() -> None:
    worker = FakeWorker()
    pool = RolloutPool([worker], max_outstanding=1, watcher=FullDisk("dispatched"))
    tasks = [asyncio.create_task(pool.sample(request(row))) for row in range(3)]

    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)

    assert [type(one) for one in ended[1:]] == [RunFolderError, RunFolderError]
    with pytest.raises(RunFolderError):
        await pool.sample(request(3))
    assert (rows(worker), pool.outstanding(0)) == ([0], 0)


async def test_a_worker_is_lost_as_any_other_where_that_cannot_be_written_down() -> None:
    worker = FakeWorker(0, open=False)
    lost: list[int] = []
    pool = RolloutPool([worker, FakeWorker(1, open=False)], watcher=FullDisk("requeued"))
    pool.on_lost = lambda number, reason: lost.append(number)
    tasks = [asyncio.create_task(pool.sample(request(row))) for row in range(4)]
    await turns_of_the_loop()

    worker.error = WorkerLost("killed")
    worker.release()

    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert [type(one) for one in ended] == [RunFolderError] * 4
    assert (lost, pool.outstanding(1)) == ([0], 0)


async def test_where_a_load_cannot_be_written_down_that_is_told_once_every_worker_has_answered() -> None:
    quick, slow = FakeWorker(0), FakeWorker(1, open=False)
    pool = RolloutPool([quick, slow], watcher=FullDisk("none"))
    task = asyncio.create_task(pool.load_weights(publication(3)))
    await turns_of_the_loop()
    assert not task.done()

    slow.release()

    with pytest.raises(RunFolderError):
        await task
    with pytest.raises(RunFolderError):
        await pool.add(2, FakeWorker(2))
    assert len(pool.workers) == 2


async def test_without_a_worker_the_error_says_so() -> None:
    pool = RolloutPool([FakeWorker(error=WorkerLost("killed"))])

    with pytest.raises(WorkerLost, match="no rollout worker is left"):
        await pool.sample(request(0))


async def test_a_deadline_of_a_worker_is_not_its_death() -> None:
    slow = FakeWorker(error=DeadlineExceeded(waited_for="a group", waited_s=1, advice="wait"))
    pool = RolloutPool([slow, FakeWorker()])

    with pytest.raises(DeadlineExceeded):
        await pool.sample(request(0))

    assert slow in pool.workers


async def test_all_workers_load_at_the_same_time_and_answer_in_order() -> None:
    workers = [FakeWorker(number, open=False) for number in range(2)]
    pool = RolloutPool(workers)
    task = asyncio.create_task(pool.load_weights(publication(3)))
    await turns_of_the_loop()
    for worker in reversed(workers):
        worker.release()
        await turns_of_the_loop()

    assert [(receipt.worker, receipt.version) for receipt in await task] == [(0, 3), (1, 3)]


async def test_weights_that_all_refuse_are_an_error_once_every_worker_has_answered() -> None:
    refusing, slow = FakeWorker(error=CanaryMismatch("stale head")), FakeWorker(1, open=False)
    slow.error = CanaryMismatch("slow too")
    pool = RolloutPool([refusing, slow])
    task = asyncio.create_task(pool.load_weights(publication(3)))
    await turns_of_the_loop()
    assert not task.done()

    slow.release()

    with pytest.raises(CanaryMismatch, match="stale head"):
        await task


async def test_a_worker_that_refuses_what_others_accept_is_lost() -> None:
    refusing, other = FakeWorker(error=CanaryMismatch("broken memory")), FakeWorker(1)
    lost: list[int] = []
    pool = RolloutPool([refusing, other])
    pool.on_lost = lambda number, reason: lost.append(number)

    receipts = await pool.load_weights(publication(3))

    assert ([receipt.worker for receipt in receipts], lost, list(pool.workers)) == ([1], [0], [other])


async def test_a_worker_that_fails_in_a_way_without_a_name_is_lost_once_every_other_has_loaded() -> None:
    failing = FakeWorker(0, error=TriremeError("load_weights failed: [Errno 116] Stale file handle"))
    slow = FakeWorker(1, open=False)
    pool = RolloutPool([failing, slow])
    task = asyncio.create_task(pool.load_weights(publication(3)))
    await turns_of_the_loop()
    assert not task.done()

    slow.release()

    assert ([receipt.worker for receipt in await task], list(pool.workers)) == ([1], [slow])


async def test_where_every_worker_fails_in_such_a_way_none_is_lost_and_the_first_error_is_raised() -> None:
    workers = [FakeWorker(number, error=TriremeError(f"worker {number}: stale file handle")) for number in range(2)]
    pool = RolloutPool(workers)
    pool.awaits_workers = True

    with pytest.raises(TriremeError, match="worker 0"):
        await pool.load_weights(publication(3))

    assert list(pool.workers) == workers


async def test_a_worker_found_dead_while_loading_leaves_and_the_others_serve() -> None:
    pool = RolloutPool([FakeWorker(0, error=WorkerLost("killed")), FakeWorker(1)])

    receipts = await pool.load_weights(publication(3))

    assert [receipt.worker for receipt in receipts] == [1]
    assert len(pool.workers) == 1


async def test_when_every_worker_died_while_loading_the_error_says_why() -> None:
    pool = RolloutPool([FakeWorker(error=WorkerLost("out of memory"))])

    with pytest.raises(WorkerLost, match="out of memory"):
        await pool.load_weights(publication(3))


async def test_a_joining_worker_serves_only_after_it_loaded_the_newest_version() -> None:
    pool = RolloutPool([FakeWorker(0)])
    await pool.load_weights(publication(3))
    joining = FakeWorker(1, open=False)
    task = asyncio.create_task(pool.add(1, joining))
    await turns_of_the_loop()
    assert joining not in pool.workers
    await pool.load_weights(publication(4))

    joining.release()
    receipt = await task

    assert receipt is not None
    assert receipt.version == 4
    assert joining in pool.workers


async def test_a_worker_that_fails_to_load_does_not_join() -> None:
    pool = RolloutPool([FakeWorker(0)])
    await pool.load_weights(publication(3))

    with pytest.raises(CanaryMismatch):
        await pool.add(1, FakeWorker(1, error=CanaryMismatch("stale head")))

    assert len(pool.workers) == 1


async def test_a_removed_worker_ends_its_requests_and_gets_no_more() -> None:
    leaving, staying = FakeWorker(0, open=False), FakeWorker(1)
    pool = RolloutPool([leaving, staying])
    under_way = asyncio.create_task(pool.sample(request(0)))
    await turns_of_the_loop()
    removal = asyncio.create_task(pool.remove(0, timeout_s=20))
    await turns_of_the_loop()
    await asyncio.gather(*(pool.sample(request(row)) for row in (1, 2)))
    assert not removal.done()

    leaving.release()
    await removal

    assert (await under_way).prompt.row == 0
    assert (rows(leaving), rows(staying)) == ([0], [1, 2])


async def test_what_a_removed_worker_has_not_ended_in_time_goes_to_others() -> None:
    leaving, staying = FakeWorker(0, open=False), FakeWorker(1)
    pool = RolloutPool([leaving, staying])
    under_way = asyncio.create_task(pool.sample(request(0)))
    await turns_of_the_loop()

    assert not await pool.remove(0, timeout_s=0.01)

    assert (await under_way).prompt.row == 0
    assert rows(staying) == [0]
    leaving.release()


async def test_an_answer_for_whoever_gives_up_in_the_same_turn_harms_nobody() -> None:
    worker = FakeWorker(0, open=False)
    pool = RolloutPool([worker])
    before = asyncio.all_tasks()
    task = asyncio.create_task(pool.sample(request(0)))
    await turns_of_the_loop()
    (attempt,) = asyncio.all_tasks() - before - {task}

    worker.release()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns_of_the_loop()

    assert attempt.done() and attempt.exception() is None
    assert (await pool.sample(request(1))).prompt.row == 1
