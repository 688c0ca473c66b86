"""The queue of fresh pairs: whole steps, each labelled once, best against worst."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from services.contracts.records import Failure, FailureCode, Message, Reward, RewardSample, RolloutGroup, ScoredGroup
from services.control.fresh_pairs import PAIRS_FILE, PairQueue, PairsConfig
from services.control.metrics import SAMPLES_FILE, SampleLog
from tests.fakes import FakeRewards, make_prompt, make_rollout


class Digits(FakeRewards):
    """Counts digits, and remembers the prompts that it was asked about."""

    def __init__(self) -> None:
        super().__init__(digits)
        self.asked: list[str] = []

    async def score(self, samples: Sequence[RewardSample]) -> Sequence[Reward | Failure]:
        self.asked.append(samples[0].prompt)
        return await super().score(samples)


def digits(sample: RewardSample) -> Reward | Failure:
    if sample.completion == "unspeakable":
        return Failure(code=FailureCode.INVALID_SAMPLE, message="no")
    return Reward(value=float(sum(map(str.isdigit, sample.completion))), version="gold")


def scored(row: int, *completions: str) -> ScoredGroup:
    prompt = make_prompt(row)
    rollouts = tuple(make_rollout(prompt, sample_index=i, completion=text) for i, text in enumerate(completions))
    rewards = tuple(Reward(value=0.0) for _ in completions)
    return ScoredGroup(group=RolloutGroup(prompt=prompt, rollouts=rollouts), rewards=rewards)


def sample(run: Path, *, after: int, steps: Sequence[Sequence[ScoredGroup]]) -> None:
    """Have the run write these steps."""
    run.mkdir(exist_ok=True)
    with SampleLog(run, samples_per_step=100, resume_step=after) as log:
        for number, groups in enumerate(steps, start=after + 1):
            log.record(number, groups)


async def test_pairs_are_best_against_worst_of_each_prompt_of_the_whole_steps(tmp_path: Path) -> None:
    queue = PairQueue(tmp_path, tmp_path / "run", PairsConfig(window=2))
    await queue.fill(Digits())
    assert queue.num_pairs == 0
    first = [scored(0, "1a", "abc", "123"), scored(1, "same", "same"), scored(2, "ab", "cd")]
    sample(tmp_path / "run", after=0, steps=[first, [scored(3, "7", "x")], [scored(4, "1", "y")]])

    await queue.fill(Digits())
    queue.close()

    assert [(pair["step"], pair["prompt"], pair["chosen"], pair["rejected"]) for pair in queue.newest()] == [
        (1, "prompt 0", "123", "abc"),
        (2, "prompt 3", "7", "x"),
    ]
    assert [(pair["margin"], pair["label_version"]) for pair in queue.newest()] == [(3.0, "gold"), (1.0, "gold")]


async def test_labels_that_are_too_near_or_missing_make_no_pair_and_people_add_theirs(tmp_path: Path) -> None:
    peoples = tmp_path / "people.jsonl"
    peoples.write_text('{"prompt": "by hand", "chosen": "yes", "rejected": "no"}\n')
    queue = PairQueue(tmp_path, tmp_path / "run", PairsConfig(min_margin=1.0, more=peoples))
    groups = [scored(0, "1", "a"), scored(1, "12", "a"), scored(2, "123", "unspeakable")]
    sample(tmp_path / "run", after=0, steps=[groups, [scored(3, "1", "y")]])

    await queue.fill(Digits())
    queue.close()

    assert [pair["prompt"] for pair in queue.newest()] == ["by hand", "prompt 1"]
    assert (queue.num_failed, queue.last_failure) == (1, "invalid_sample: no")


async def test_the_turns_of_a_dialogue_are_labelled_as_they_are(tmp_path: Path) -> None:
    def last_turn(sample: RewardSample) -> Reward:
        return Reward(value=float(sample.answer))

    group = scored(0, "9 or 1", "0 or 2").group
    said = [(Message(role="assistant", content=rollout.completion[-1]),) for rollout in group.rollouts]
    rollouts = tuple(replace(rollout, turns=turns) for rollout, turns in zip(group.rollouts, said, strict=True))
    dialogue = ScoredGroup(group=replace(group, rollouts=rollouts), rewards=(Reward(value=0.0),) * 2)
    sample(tmp_path / "run", after=0, steps=[[dialogue], [scored(1, "1", "2")]])
    queue = PairQueue(tmp_path, tmp_path / "run", PairsConfig())

    await queue.fill(FakeRewards(last_turn))
    queue.close()

    assert [(pair["chosen"], pair["margin"]) for pair in queue.newest()] == [("0 or 2", 1.0)]


async def test_a_chat_is_labelled_by_its_turns_and_learnt_as_the_text_that_was_continued(tmp_path: Path) -> None:
    def by_turns(sample: RewardSample) -> Reward | Failure:
        assert (sample.prompt, sample.messages) == ("user: hi assistant:", turns)
        return digits(sample)

    turns = (Message(role="user", content="hi"),)
    group = scored(0, "1", "a").group
    prompt = replace(group.prompt, text="user: hi assistant:", messages=turns)
    chat = ScoredGroup(group=replace(group, prompt=prompt), rewards=(Reward(value=0.0),) * 2)
    sample(tmp_path / "run", after=0, steps=[[chat], [scored(1, "1", "2")]])
    queue = PairQueue(tmp_path, tmp_path / "run", PairsConfig())

    await queue.fill(FakeRewards(by_turns))
    queue.close()

    assert [(pair["prompt"], pair["chosen"]) for pair in queue.newest()] == [("user: hi assistant:", "1")]


async def test_a_queue_that_was_killed_labels_the_torn_step_again_and_no_other(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sample(
        run, after=0, steps=[[scored(0, "1", "a")], [scored(1, "1", "a"), scored(2, "1", "a")], [scored(3, "1", "")]]
    )
    queue = PairQueue(tmp_path, run, PairsConfig())
    await queue.fill(Digits())
    queue.close()
    whole = queue.newest()
    path = tmp_path / PAIRS_FILE
    path.write_bytes(path.read_bytes()[:-20])  # Its last line is torn.

    labels = Digits()
    queue = PairQueue(tmp_path, run, PairsConfig())
    await queue.fill(labels)
    queue.close()

    assert queue.newest() == whole
    assert queue.num_pairs == 3
    assert labels.asked == ["prompt 1", "prompt 2"]


async def test_what_a_run_adds_is_read_once_and_a_line_that_is_being_written_when_it_is_whole(tmp_path: Path) -> None:
    run, labels = tmp_path / "run", Digits()
    sample(run, after=0, steps=[[scored(0, "1", "a")], [scored(1, "1", "a")]])
    path = run / SAMPLES_FILE
    whole = path.read_bytes()
    torn = whole[:-20]
    path.write_bytes(torn)
    queue = PairQueue(tmp_path, run, PairsConfig())
    await queue.fill(labels)
    with path.open("r+b") as file:  # What was read must not be read again: it would be no JSON.
        file.write(b"x" * torn.rfind(b"\n"))
        file.seek(len(torn))
        file.write(whole[-20:])
    with SampleLog(tmp_path / "more", samples_per_step=100, resume_step=2) as log:
        log.record(3, [scored(2, "12", "a")])
    with path.open("ab") as file:
        file.write((tmp_path / "more" / SAMPLES_FILE).read_bytes())
    await queue.fill(labels)
    queue.close()

    assert labels.asked == ["prompt 0", "prompt 1"]
    assert queue.num_pairs == 2


async def test_a_run_that_is_resumed_from_an_earlier_step_is_followed_from_there(tmp_path: Path) -> None:
    run, labels = tmp_path / "run", Digits()
    sample(run, after=0, steps=[[scored(0, "1", "a")], [scored(1, "1", "a")], [scored(2, "1", "a")]])
    queue = PairQueue(tmp_path, run, PairsConfig())
    await queue.fill(labels)
    sample(run, after=2, steps=[[scored(7, "1", "a")], [scored(8, "1", "a")]])
    await queue.fill(labels)
    queue.close()

    assert labels.asked == ["prompt 0", "prompt 1", "prompt 7"]
    assert [pair["step"] for pair in queue.newest()] == [1, 2, 3]
