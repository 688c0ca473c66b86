"""Whether demands fit on machines, and what is said when they do not."""

from services.control.placement import Demand, shortage, unplaced

RANKS = [Demand(name=f"learner rank {rank}", cpus=2, gpus=1) for rank in range(2)]
WORKERS = [Demand(name=f"rollout worker {worker}", cpus=1) for worker in range(3)]


def test_a_shortage_names_what_is_needed_by_whom_and_what_there_is() -> None:
    missing = shortage([*RANKS, *WORKERS], [{"CPU": 4.0, "memory": 1e9}])
    assert missing is not None
    assert "needs 7 CPU, 2 GPU: learner rank 0 to learner rank 1: 2 CPU, 1 GPU each; " in missing
    assert "rollout worker 0 to rollout worker 2: 1 CPU each; the cluster has 4 CPU, 0 GPU, " in missing
    assert "no room for learner rank 0, learner rank 1; lower rollout.num_workers, learner.num_ranks" in missing


def test_a_process_that_fits_on_no_single_machine_is_named() -> None:
    missing = shortage([Demand(name="learner rank 0", cpus=6), *WORKERS], [{"CPU": 4.0}, {"CPU": 5.0, "GPU": 1.0}])
    assert missing is not None
    assert "the cluster has 9 CPU, 1 GPU on 2 machines (4 CPU; 5 CPU, 1 GPU)" in missing
    assert "no room for learner rank 0;" in missing


def test_what_fits_lacks_nothing() -> None:
    assert shortage([*RANKS, *WORKERS], [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 1.0}]) is None


def test_small_processes_leave_the_large_their_machine() -> None:
    assert unplaced([*WORKERS, RANKS[0]], [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 3.0}]) == []


def test_processes_that_are_alike_are_counted_one_by_one() -> None:
    assert unplaced([WORKERS[0], WORKERS[1]], [{"CPU": 1.0}]) == [WORKERS[1]]
