"""Dynamic sampling: groups that teach nothing are replaced, by order and never by arrival, and a step always ends."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.errors import UserError
from services.contracts.records import Json, Reward, RolloutGroup, ScoredGroup
from services.control.admission import AdmissionRule
from services.control.config import RunConfig
from services.control.evaluate_config import EvaluateConfig
from services.control.filter_metrics import filter_metrics
from services.control.ledger import Ledger
from services.control.run_machine import RunMachine
from tests.fakes import make_prompt, make_rollout


def scored(position: int, rewards: Sequence[float], *, version: int = 0) -> ScoredGroup:
    prompt = make_prompt(position)
    rollouts = tuple(make_rollout(prompt, sample_index=index, version=version) for index in range(len(rewards)))
    group = RolloutGroup(prompt=prompt, rollouts=rollouts)
    return ScoredGroup(group=group, rewards=tuple(Reward(value=value) for value in rewards))


def group_of(position: int, *, is_flat: bool, version: int = 0) -> ScoredGroup:
    return scored(position, (1.0, 1.0) if is_flat else (0.0, 1.0), version=version)


class Run:
    """A machine with what it wrote down; positions are drawn one after the other."""

    def __init__(self, *, batch: int, most: int, max_staleness: int = 0, num_steps: int | None = None) -> None:
        self.events: list[tuple[str, dict[str, Json]]] = []
        rule = AdmissionRule(prompts_per_step=batch, max_staleness=max_staleness, num_steps=num_steps)
        self.ledger = Ledger(lambda event, **fields: self.events.append((event, fields)))
        self.machine = RunMachine(rule, self.ledger, max_filtered_per_step=most)
        self.position = 0
        self.running: list[int] = []

    def admit(self) -> None:
        for _ in range(self.machine.room()):
            self.machine.admit(self.position, make_prompt(self.position))
            self.running.append(self.position)
            self.position += 1

    def rows(self, event: str) -> list[int]:
        return [int(str(fields["prompt"]).removeprefix("0-")) for name, fields in self.events if name == event]

    def train(self, groups: Sequence[ScoredGroup]) -> list[int]:
        self.machine.trained(groups)
        self.machine.served(self.machine.trained_steps)
        return [scored.group.prompt.row for scored in groups]


def test_a_group_that_teaches_nothing_is_replaced_by_the_next_prompt() -> None:
    run = Run(batch=2, most=4)
    run.admit()
    run.machine.accept(0, group_of(0, is_flat=True))
    assert run.machine.room() == 1
    run.admit()
    run.machine.accept(1, group_of(1, is_flat=False))
    assert run.machine.next_batch() is None
    run.machine.accept(2, group_of(2, is_flat=False))
    groups = run.machine.next_batch()
    assert groups is not None
    assert [group.group.prompt.row for group in run.machine.filtered] == [0]
    assert run.train(groups) == [1, 2]
    assert run.events[-3] == (
        "filtered",
        {"prompt": "0-0", "reason": "all 2 rewards are 1, so that comparing them teaches nothing", "step": 1},
    )
    assert run.ledger.open_prompts == {}


def test_groups_above_the_limit_are_trained_so_that_a_step_ends() -> None:
    run = Run(batch=2, most=1)
    while (groups := run.machine.next_batch()) is None:
        run.admit()
        position = run.running.pop()
        run.machine.accept(position, group_of(position, is_flat=True))
    assert run.train(groups) == [1, 2]
    assert run.rows("filtered") == [0]


def test_without_dynamic_sampling_nothing_is_filtered() -> None:
    run = Run(batch=2, most=0)
    run.admit()
    for position in (0, 1):
        run.machine.accept(position, group_of(position, is_flat=True))
    groups = run.machine.next_batch()
    assert groups is not None and run.train(groups) == [0, 1]
    assert run.rows("filtered") == []


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32))
def test_a_synchronous_step_is_the_same_whatever_finishes_first(batch: int, most: int, seed: int) -> None:
    """And it is the shortest run of prompts that holds enough, once the first flat ones are left out."""
    flat = [random.Random(f"{seed}/{position}").random() < 0.6 for position in range(200)]
    outcomes = []
    for order in (0, 1):
        draw = random.Random(f"{seed}/{order}")
        run = Run(batch=batch, most=most)
        steps = []
        while len(steps) < 4:
            if (groups := run.machine.next_batch()) is not None:
                steps.append(run.train(groups))
                continue
            run.admit()
            position = run.running.pop(draw.randrange(len(run.running)))
            version = run.machine.version
            run.machine.accept(position, group_of(position, is_flat=flat[position], version=version))
        outcomes.append((steps, run.rows("filtered")))
    assert outcomes[0] == outcomes[1] == expected(flat, batch=batch, most=most)


def expected(flat: Sequence[bool], *, batch: int, most: int) -> tuple[list[list[int]], list[int]]:
    """Four steps' prompts, and those left out, by going through the stream one prompt at a time."""
    steps: list[list[int]] = []
    left_out: list[int] = []
    position = 0
    for _ in range(4):
        step: list[int] = []
        before = len(left_out)
        while len(step) < batch:
            is_left_out = flat[position] and len(left_out) - before < most
            (left_out if is_left_out else step).append(position)
            position += 1
        steps.append(step)
    return steps, left_out


@given(st.integers(0, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32))
def test_with_staleness_every_prompt_ends_and_the_bound_holds(k: int, batch: int, most: int, seed: int) -> None:
    """Groups finish in any order, mostly the newest first, and the learner is slow; every prompt ends once."""
    draw = random.Random(seed)
    run = Run(batch=batch, most=most, max_staleness=k, num_steps=8)
    rate = draw.random()
    in_hand = None
    trained: list[int] = []
    while run.machine.trained_steps < 8:
        run.admit()
        in_hand = in_hand or run.machine.next_batch()
        if in_hand and (draw.random() < 0.5 or not run.running):
            assert len(in_hand) == batch
            flats = sum(group.is_flat for group in in_hand)
            assert len(run.machine.filtered) <= most
            assert not flats or len(run.machine.filtered) == most
            trained += run.train(in_hand)
            in_hand = None
        elif run.running:
            place = -1 if draw.random() < 0.7 else draw.randrange(len(run.running))
            position = run.running.pop(place)
            is_flat = random.Random(f"{seed}/{position}").random() < rate
            run.machine.accept(position, group_of(position, is_flat=is_flat, version=run.machine.version))
        else:
            raise AssertionError("nothing is under way, and nothing may be")
    assert run.ledger.open_prompts == {}
    ends = Counter(run.rows("trained")) + Counter(run.rows("filtered"))
    assert ends == Counter(range(run.position))
    assert len(trained) == 8 * batch


def resumed(machine: RunMachine, ledger: Ledger, *, batch: int, most: int, max_staleness: int) -> RunMachine:
    return RunMachine(
        AdmissionRule(prompts_per_step=batch, max_staleness=max_staleness, num_steps=6),
        ledger,
        trained_steps=machine.trained_steps,
        open_work=machine.open_work,
        max_filtered_per_step=most,
    )


@pytest.mark.parametrize("settings_change", [False, True])
@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32))
def test_a_run_resumed_from_any_snapshot_still_ends(
    settings_change: bool, k: int, batch: int, most: int, seed: int
) -> None:
    """Also from one taken while a batch was given out, with flat groups on both sides of it.

    A resume may filter fewer prompts than before, or none, train more at once, and bound staleness otherwise.
    """
    draw = random.Random(seed)
    run = Run(batch=batch, most=most, max_staleness=k, num_steps=6)
    in_hand = None
    while run.machine.trained_steps < 6:
        if draw.random() < 0.2:
            in_hand = None
            bound = draw.randint(0, 4) if settings_change else k
            if settings_change:
                batch, most = draw.randint(batch, batch + 1), draw.randint(0, 4)
            try:
                run.machine = resumed(run.machine, run.ledger, batch=batch, most=most, max_staleness=bound)
                k = bound
            except UserError:
                assert bound < k
                run.machine = resumed(run.machine, run.ledger, batch=batch, most=most, max_staleness=k)
        run.admit()
        in_hand = in_hand or run.machine.next_batch()
        if in_hand and (draw.random() < 0.5 or not run.running):
            run.train(in_hand)
            in_hand = None
        elif run.running:
            position = run.running.pop(draw.randrange(len(run.running)))
            is_flat = draw.random() < 0.6
            run.machine.accept(position, group_of(position, is_flat=is_flat, version=run.machine.version))
        else:
            assert in_hand, "nothing is under way, and nothing may be"
    assert run.ledger.open_prompts == {}


def test_a_resume_without_dynamic_sampling_still_leaves_out_what_others_replaced_and_nothing_after_it() -> None:
    run = Run(batch=1, most=4, num_steps=6)
    for position in range(3):
        run.admit()
        run.machine.accept(position, group_of(position, is_flat=True))
    run.admit()
    run.machine = resumed(run.machine, run.ledger, batch=1, most=0, max_staleness=0)
    run.machine.accept(3, group_of(3, is_flat=True))
    groups = run.machine.next_batch()
    assert groups is not None and run.train(groups) == [3]
    assert run.rows("filtered") == [0, 1, 2]
    run.admit()
    run.machine.accept(4, group_of(4, is_flat=True, version=1))
    groups = run.machine.next_batch()
    assert groups is not None and run.train(groups) == [4]


@pytest.mark.parametrize(("batch", "max_staleness"), [(2, 0), (1, 1)])
def test_a_resume_with_too_little_room_for_what_waits_is_refused(batch: int, max_staleness: int) -> None:
    run = Run(batch=2, most=4, max_staleness=1)
    run.admit()
    for position in range(4):
        run.machine.accept(position, group_of(position, is_flat=False))
    with pytest.raises(UserError, match=f"max_staleness {max_staleness} and train.prompts_per_step {batch}"):
        resumed(run.machine, run.ledger, batch=batch, most=4, max_staleness=max_staleness)


def test_the_metrics_say_how_much_was_filtered_and_whether_it_was_too_easy_or_too_hard() -> None:
    trained = [scored(0, (0.0, 1.0))]
    filtered = [scored(1, (1.0, 1.0)), scored(2, (0.0, 0.0)), scored(3, (1.0, 1.0))]
    assert filter_metrics(trained, filtered, EvaluateConfig()) == {
        "filtered/share": 0.75,
        "filtered/all_right": 0.5,
        "filtered/all_wrong": 0.25,
        "filtered/sampled_reward": 0.625,
    }


RUN = {"model": {"path": "m"}, "data": {"prompts": "p"}, "reward": {"addresses": ["localhost:1"]}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"max_filtered_per_step": 3}}, "max_filtered_per_step 3 has no effect without dynamic_sampling"),
        ({"train": {"dynamic_sampling": True}}, "learner.algorithm ppo learns from them too"),
        (
            {"train": {"dynamic_sampling": True}, "learner": {"algorithm": "remax"}},
            "learner.algorithm remax learns from them too, by steps or a baseline that is not the group's",
        ),
        (
            {
                "train": {"dynamic_sampling": True},
                "learner": {"algorithm": "grpo"},
                "rollout": {"samples_per_prompt": 1},
            },
            "rollout.samples_per_prompt is 1",
        ),
    ],
)
def test_settings_that_do_not_fit_dynamic_sampling_are_refused(sections: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(RUN | sections)


def test_by_default_a_step_may_filter_three_times_as_many_prompts_as_it_trains() -> None:
    sections = {"train": {"dynamic_sampling": True, "prompts_per_step": 5}, "learner": {"algorithm": "grpo"}}
    assert RunConfig.model_validate(RUN | sections).train.most_filtered == 15
    assert RunConfig.model_validate(RUN).train.most_filtered == 0
