"""Labels of steps on a policy and a reward that are known: counts, prefixes, resumes, and what is refused."""

import asyncio
import json
import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rollout_workers.prompts import DataConfig, PromptSet
from rollout_workers.reward_rows import RewardDataConfig, read_judged_row
from services.contracts.errors import SampleNotScorable, UserError, WorkerLost
from services.contracts.records import (
    Failure,
    FailureCode,
    Prompt,
    Publication,
    Reward,
    RewardSample,
    Rollout,
    RolloutGroup,
    SampleRequest,
    Sampling,
    SyncReceipt,
)
from services.control.evaluate_config import EvaluateConfig
from services.control.event_log import EVENTS_FILE
from services.control.labelled_completions import GivenCompletions, SampledCompletions, read_completions
from services.control.preflight import RunInputs
from services.control.step_label_job import LABELS_FILE, Row, StepLabelsRunConfig, open_step_label_job
from services.control.step_labels import StepLabel, StepLabeller, StepLabelsConfig
from tests.end_to_end.command import json_lines
from tests.fakes import FakeRewards, make_rollout
from tests.tiny import PADDING, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = int(TOKENIZER.eos_token_id)
SAMPLING = Sampling(num_samples=2, max_completion_tokens=12, seed=5)
STEPS = "1+1. so 2. =2"  # [0, 4), [4, 10), [10, 13)


def make_prompt(row: int = 0) -> Prompt:
    return Prompt(
        id=f"0-{row}", text="12?", token_ids=array("i", TOKENIZER.encode("12?")), reference={"answer": "2"}, row=row
    )


def decode(token_ids: list[int]) -> str:
    return str(TOKENIZER.decode(token_ids, skip_special_tokens=True))


class Policy:
    """Implements `RolloutSource`: goes on with what `says` gives for a text so far and a sample's index.

    Args:
        fails_at: the request, from 0, at which the last worker is lost.
    """

    def __init__(self, says: Callable[[str, int], str], *, fails_at: int | None = None) -> None:
        self.requests: list[SampleRequest] = []
        self.most_at_once = 0
        self._says = says
        self._fails_at = fails_at
        self._running = 0

    async def sample(self, request: SampleRequest) -> RolloutGroup:
        if len(self.requests) == self._fails_at:
            raise WorkerLost("no rollout worker is left")
        self.requests.append(request)
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        for _ in range(3):
            await asyncio.sleep(0)
        self._running -= 1
        so_far = decode(list(request.prompt.token_ids))
        texts = [self._says(so_far, index) for index in range(request.sampling.num_samples)]
        return RolloutGroup(
            prompt=request.prompt,
            rollouts=tuple(
                make_rollout(
                    request.prompt, sample_index=index, completion_ids=[*TOKENIZER.encode(text), EOS], completion=text
                )
                for index, text in enumerate(texts)
            ),
        )

    async def load_weights(self, publication: Publication) -> Sequence[SyncReceipt]:
        raise AssertionError("labels are made with one version")


def ends_right(sample: RewardSample) -> Reward:
    return Reward(value=float(sample.completion.endswith(f"={sample.reference['answer']}")))


def right_more_often_after_a_good_step(so_far: str, index: int) -> str:
    """Of four continuations one is right after the first step, and three after the second."""
    return " =2" if index < (3 if "so 2." in so_far else 1) else " =3"


def labeller(
    policy: Policy,
    score: Callable[[RewardSample], Reward | Failure] = ends_right,
    sampling: Sampling = SAMPLING,
    **config: Any,
) -> StepLabeller:
    return StepLabeller(
        StepLabelsConfig(**{"separator": ".", "continuations": 4} | config),
        rollouts=policy,
        rewards=FakeRewards(score),
        decode=decode,
        sampling=sampling,
        correctness=EvaluateConfig(),
    )


def completed(text: str, *, row: int = 0) -> Rollout:
    return make_rollout(make_prompt(row), completion_ids=[*TOKENIZER.encode(text), EOS], completion=text)


async def test_each_step_counts_the_right_continuations_and_the_last_is_the_completion_itself() -> None:
    policy = Policy(right_more_often_after_a_good_step)
    labels = await labeller(policy).label(make_prompt(), completed(STEPS))
    assert labels == [
        StepLabel(start=0, end=4, correct=1, of=4),
        StepLabel(start=4, end=10, correct=3, of=4),
        StepLabel(start=10, end=13, correct=1, of=1),
    ]
    assert [(label.soft, label.hard) for label in labels] == [(0.25, 1.0), (0.75, 1.0), (1.0, 1.0)]
    assert StepLabel(start=0, end=1, correct=0, of=4).hard == 0.0


async def test_a_prefix_is_the_sampled_tokens_themselves_and_leaves_the_rest_of_the_length() -> None:
    # A special token in between says nothing, so no tokeniser would put it there.
    padding = int(TOKENIZER.convert_tokens_to_ids(PADDING))
    ids = [*TOKENIZER.encode("1+"), padding, *TOKENIZER.encode("1. =2"), EOS]
    policy = Policy(lambda so_far, index: " =2")
    rollout = make_rollout(make_prompt(), completion_ids=ids, completion="1+1. =2")
    await labeller(policy).label(make_prompt(), rollout)
    (request,) = policy.requests
    assert list(request.prompt.token_ids) == [*TOKENIZER.encode("12?"), *ids[:5]]
    assert (request.sampling.num_samples, request.sampling.max_completion_tokens) == (4, 12 - 5)
    assert request.prompt.id == "0-0/0/5"


async def test_the_reward_sees_whole_completions_of_the_prompt_itself() -> None:
    seen: list[RewardSample] = []

    def score(sample: RewardSample) -> Reward:
        seen.append(sample)
        return Reward(value=1.0)

    await labeller(Policy(lambda so_far, index: f"={index}"), score, continuations=2).label(
        make_prompt(), completed("1. =2")
    )
    assert [sample.completion for sample in seen] == ["1.=0", "1.=1", "1. =2"]
    assert {(sample.prompt, sample.reference["answer"]) for sample in seen} == {("12?", "2")}
    assert seen[0].token_ids == (*TOKENIZER.encode("1.=0"), EOS)
    assert len({sample.id for sample in seen}) == 3


async def test_stop_texts_and_stop_tokens_are_no_part_of_what_is_scored() -> None:
    seen: list[str] = []

    def score(sample: RewardSample) -> Reward:
        seen.append(sample.completion)
        return Reward(value=1.0)

    stop = Sampling(num_samples=1, max_completion_tokens=12, stop=("?", "1"))
    await labeller(Policy(lambda so_far, index: "=2?3"), score, stop, continuations=1).label(
        make_prompt(), completed("1. x")
    )
    (token,) = TOKENIZER.encode("?")
    stop = Sampling(num_samples=1, max_completion_tokens=12, stop_token_ids=(EOS, token))
    rollout = make_rollout(make_prompt(), completion_ids=TOKENIZER.encode("1. x?"), completion="1. x")
    await labeller(Policy(lambda so_far, index: "=2"), score, stop, continuations=1).label(make_prompt(), rollout)
    assert seen == ["1.=2", "1. x", "1.=2", "1. x"]


async def test_an_empty_completion_has_no_steps_and_a_long_one_has_as_many_as_are_asked_for() -> None:
    policy = Policy(lambda so_far, index: "=2")
    assert await labeller(policy).label(make_prompt(), completed("")) == []
    assert policy.requests == []
    labels = await labeller(policy, max_steps=2).label(make_prompt(), completed(STEPS))
    assert [(label.start, label.end, label.of) for label in labels] == [(0, 4, 4), (4, 10, 4)]


async def test_what_counts_as_right_is_one_component_above_a_threshold() -> None:
    made = StepLabeller(
        StepLabelsConfig(separator=".", continuations=2),
        rollouts=Policy(lambda so_far, index: str(index)),
        rewards=FakeRewards(lambda sample: Reward(value=0.0, components={"close": int(sample.completion[-1]) / 2})),
        decode=decode,
        sampling=SAMPLING,
        correctness=EvaluateConfig(component="close", threshold=0.5),
    )
    labels = await made.label(make_prompt(), completed("1. 2"))
    assert [(label.correct, label.of) for label in labels] == [(1, 2), (1, 1)]


def run_config(folder: Path, **labels: Any) -> StepLabelsRunConfig:
    return StepLabelsRunConfig.model_validate(
        {
            "run": {"dir": str(folder)},
            "model": {"path": "model"},
            "data": {"prompts": "rows.jsonl"},
            "reward": {"services": [{"name": "exact_match"}]},
            "labels": {"separator": ".", "continuations": 4} | labels,
        }
    )


async def run_job(
    folder: Path,
    policy: Policy,
    score: Callable[[RewardSample], Reward | Failure] = ends_right,
    *,
    num_prompts: int = 5,
    **labels: Any,
) -> list[Row]:
    config = run_config(folder, **labels)
    with open_step_label_job(config) as job:
        made = labeller(policy, score, **config.labels.model_dump())
        completions = SampledCompletions(rollouts=policy, sampling=SAMPLING)
        return await job.run([make_prompt(row) for row in range(num_prompts)], completions, made, tell=print)


def writes_steps(so_far: str, index: int) -> str:
    return right_more_often_after_a_good_step(so_far, index) if "." in so_far else ["1+1. =2", "2. so 2. =3"][index]


async def test_rows_come_in_the_order_of_the_data_and_are_read_as_training_data(tmp_path: Path) -> None:
    policy = Policy(writes_steps)
    rows = await run_job(tmp_path, policy, max_in_flight=3)
    written = json_lines(tmp_path / LABELS_FILE)
    assert written == rows
    assert [(row["row"], row["sample"]) for row in written] == [(row, index) for row in range(5) for index in range(2)]
    assert written[1] == {
        "prompt": "12?",
        "completion": "2. so 2. =3",
        "steps": [
            {"start": 0, "end": 2, "label": 0.25},
            {"start": 2, "end": 8, "label": 0.75},
            {"start": 8, "end": 11, "label": 0.0},
        ],
        "counts": [{"correct": 1, "of": 4}, {"correct": 3, "of": 4}, {"correct": 0, "of": 1}],
        "reference": {"answer": "2"},
        "row": 0,
        "sample": 1,
    }
    data = RewardDataConfig(examples="", step_separator=".")
    judged = [read_judged_row(row, data, form="steps", any_label=False, where="") for row in rows]
    assert judged[1].step_ends == (2, 8, 11)
    assert judged[1].targets == (0.25, 0.75, 0.0)
    assert 1 < policy.most_at_once <= 3 * 2  # Prompts at once, with two prefixes of each at most.


async def test_hard_labels_are_zero_or_one(tmp_path: Path) -> None:
    rows = await run_job(tmp_path, Policy(writes_steps), num_prompts=1, kind="hard")
    assert [step["label"] for row in rows for step in row["steps"]] == [1.0, 1.0, 1.0, 1.0, 0.0]


async def test_a_job_that_was_stopped_goes_on_with_what_is_left(tmp_path: Path) -> None:
    whole = Policy(writes_steps)
    expected = await run_job(tmp_path / "whole", whole)
    folder = tmp_path / "stopped"
    with pytest.raises(WorkerLost):
        await run_job(folder, Policy(writes_steps, fails_at=11), max_in_flight=2)
    kept = json_lines(folder / LABELS_FILE)
    assert 0 < len(kept) < len(expected)
    with (folder / EVENTS_FILE).open("a") as log:
        log.write('{"event": "labelled", "completion": "0-4/')  # What a crash tore.
    policy = Policy(writes_steps)
    assert await run_job(folder, policy) == expected
    assert json_lines(folder / LABELS_FILE) == expected
    assert len(policy.requests) < len(whole.requests)
    done = Policy(writes_steps)
    assert await run_job(folder, done) == expected
    assert done.requests == []


async def test_an_interrupt_loses_nothing_that_was_labelled(tmp_path: Path) -> None:
    def interrupted_at_last(so_far: str, index: int) -> str:
        if len(policy.requests) == 20:
            job.cancel()
        return writes_steps(so_far, index)

    policy = Policy(interrupted_at_last)
    job = asyncio.create_task(run_job(tmp_path, policy, num_prompts=50, max_in_flight=1))
    with pytest.raises(asyncio.CancelledError):
        await job
    kept = json_lines(tmp_path / LABELS_FILE)
    assert len(kept) == sum('"labelled"' in line for line in (tmp_path / EVENTS_FILE).read_text().splitlines()) > 3


async def test_a_completion_that_cannot_be_scored_is_left_out_until_there_are_too_many(tmp_path: Path) -> None:
    def score(sample: RewardSample) -> Reward | Failure:
        is_refused = sample.id.startswith("0-1/")
        return Failure(code=FailureCode.INVALID_SAMPLE, message="no reference") if is_refused else ends_right(sample)

    rows = await run_job(tmp_path / "some", Policy(writes_steps), score)
    assert {row["row"] for row in rows} == {0, 2, 3, 4}
    refused = Failure(code=FailureCode.INVALID_SAMPLE, message="no reference")
    with pytest.raises(SampleNotScorable, match=r"9 completions could not be scored .* is 8; the last: row \d: no ref"):
        await run_job(tmp_path / "all", Policy(writes_steps), lambda sample: refused)


async def test_labels_of_different_settings_do_not_stand_in_one_folder(tmp_path: Path) -> None:
    await run_job(tmp_path, Policy(writes_steps), num_prompts=1)
    await run_job(tmp_path, Policy(writes_steps), num_prompts=2, max_in_flight=1)
    with pytest.raises(UserError, match=r"has labels made with labels.separator '.', and it is '\?'; set it back, or"):
        await run_job(tmp_path, Policy(writes_steps), separator="?")


def test_a_folder_is_held_by_one_job(tmp_path: Path) -> None:
    with (
        open_step_label_job(run_config(tmp_path)),
        pytest.raises(UserError, match="is in use by process"),
        open_step_label_job(run_config(tmp_path)),
    ):
        pass


def test_continuations_that_would_all_be_the_same_are_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path).model_dump()
    config["rollout"] |= {"temperature": 0.0, "samples_per_prompt": 1}
    with pytest.raises(ValueError, match=r"rollout.temperature 0 makes the 4 continuations of a step the same"):
        StepLabelsRunConfig.model_validate(config)


def given(folder: Path, *values: object, max_tokens: int = 12) -> GivenCompletions:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"solution": value}) + "\n" for value in values))
    prompts = PromptSet(prompts=tuple(make_prompt(row) for row in range(len(values))))
    inputs = RunInputs(prompts=prompts, max_length=100, tokenizer=TOKENIZER)
    return read_completions(DataConfig(prompts=str(path)), inputs, field="solution", max_tokens=max_tokens)


async def test_completions_of_the_data_are_labelled_too(tmp_path: Path) -> None:
    completions = given(tmp_path, "1+1. =2", ["2. =3", "=2"])
    assert [completions.count(make_prompt(row)) for row in (0, 1)] == [1, 2]
    first, _ = await completions.of(make_prompt(1))
    labels = await labeller(Policy(right_more_often_after_a_good_step)).label(make_prompt(1), first)
    assert [(label.start, label.end, label.correct, label.of) for label in labels] == [(0, 2, 1, 4), (2, 5, 0, 1)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["ok", None], "row 1, column 'solution': expected a completion or a list of completions, found None"),
        ([["ok", 7]], "row 0, column 'solution': expected a completion or a list of completions, found ['ok', 7]"),
        (["x\ud800"], "row 0, column 'solution': the text has a lone surrogate at character 1"),
        (["ÄB"], "row 0, column 'solution': the tokenizer gives '' back for 'ÄB'"),
        (["a" * 13], "the completion has 13 tokens and rollout.max_completion_tokens is 12"),
    ],
)
def test_a_completion_that_cannot_be_used_is_named(tmp_path: Path, values: list[object], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        given(tmp_path, *values)
