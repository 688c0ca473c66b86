"""The simulator: hand-worked times of small settings, and what must hold of every run."""

import math
from dataclasses import replace

import pytest

from benchmarks.simulated_machine import Clock, Decoding, Engine, Node
from benchmarks.simulation import Setting, lognormal, simulate
from benchmarks.sync_schemes import SCHEMES, Network, sequential, shared_pull, tree

NETWORK = Network(model_bytes=100.0, workers_per_node=2, link=50.0, uplink=100.0, memory=200.0, call_s=0.0)
ONE_WORKER = Setting(
    num_workers=1, prompts_per_step=1, samples_per_prompt=1, max_staleness=0, lengths=lambda draw: 100,
    decoding=Decoding(fixed_s=0.01, per_sequence_s=0.01), reward_s=0.5, learner_s=3.0, publish_s=0.25, load_s=0.75,
    scheme="shared pull", network=NETWORK,
)  # fmt: skip
LONG_TAILED = replace(
    ONE_WORKER, num_workers=4, prompts_per_step=8, samples_per_prompt=4, lengths=lognormal(100, 800), learner_s=1.5
)


def ends_of(lengths: list[int], *, cores: float = math.inf, engines: int = 1) -> list[float]:
    clock, ends = Clock(), []
    node = Node(cores)
    decoding = Decoding(fixed_s=1.0, per_sequence_s=1.0)
    for _ in range(engines):
        engine: Engine[int] = Engine(
            clock, node, decoding, on_start=lambda order: None, on_end=lambda order: ends.append(clock.now)
        )
        engine.add([(length, length) for length in lengths])
    while len(ends) < engines * len(lengths):
        clock.advance()
    return ends


def test_a_sequence_speeds_up_when_the_one_beside_it_ends() -> None:
    assert ends_of([10, 30]) == pytest.approx([10 * 3.0, 10 * 3.0 + 20 * 2.0])


def test_two_engines_on_one_core_take_twice_as_long() -> None:
    assert ends_of([10], cores=1, engines=2) == pytest.approx([40.0, 40.0])


def test_a_synchronous_step_is_the_sum_of_its_parts() -> None:
    outcome = simulate(ONE_WORKER)
    parts = 100 * 0.02 + 0.5 + 3.0 + 0.25 + 100 / 200 + 0.75
    assert outcome.step_s == pytest.approx(parts)
    assert outcome.sync_s == pytest.approx(0.25 + 0.5 + 0.75)
    assert outcome.tokens_per_s == pytest.approx(100 / parts)


def test_an_asynchronous_step_is_as_long_as_its_longest_part() -> None:
    outcome = simulate(replace(ONE_WORKER, max_staleness=1, learner_s=10.0))
    assert outcome.step_s == pytest.approx(10.0 + 0.25)
    assert outcome.staleness_max == 1


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_staleness_stays_within_its_bound(max_staleness: int, seed: int) -> None:
    outcome = simulate(replace(LONG_TAILED, max_staleness=max_staleness), num_steps=40, seed=seed)
    assert outcome.staleness_max <= max_staleness
    assert outcome.staleness_mean >= 0.5 * max_staleness


def test_the_same_seed_gives_the_same_outcome_and_another_seed_another() -> None:
    setting = replace(LONG_TAILED, max_staleness=1)
    assert simulate(setting, seed=1) == simulate(setting, seed=1) != simulate(setting, seed=2)


def test_waiting_for_running_sequences_before_a_load_is_slower_than_loading_beside_them() -> None:
    setting = replace(LONG_TAILED, max_staleness=1, load_s=0.1)
    assert simulate(replace(setting, in_flight=False)).step_s > 1.05 * simulate(setting).step_s


def test_arrivals_of_each_scheme_by_hand() -> None:
    assert sequential(NETWORK, 4) == pytest.approx([0.5, 1.0, 3.0, 5.0])
    assert tree(NETWORK, 4) == pytest.approx([0.5, 2.5, 2.5, 4.5])
    assert shared_pull(NETWORK, 4) == pytest.approx([0.5, 0.5, 2.5, 2.5])
    assert shared_pull(NETWORK, 8)[-1] == pytest.approx(0.5 + 3.0), "three nodes share the source's uplink"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_workers", [1, 3, 64])
def test_every_worker_gets_the_weights_and_more_workers_never_make_it_faster(scheme: str, num_workers: int) -> None:
    arrivals = SCHEMES[scheme](NETWORK, num_workers)
    assert len(arrivals) == num_workers and min(arrivals) > 0
    assert max(SCHEMES[scheme](NETWORK, 2 * num_workers)) >= max(arrivals)
