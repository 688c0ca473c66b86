"""What leaves a run: rows that stay unique and readable through crashes and resumes, sinks, and samples."""

import json
import math
import sys
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import (  # has no types
    EventAccumulator,
)

from services.contracts.errors import UserError
from services.contracts.records import Message, Reward, RolloutGroup, ScoredGroup, StepReward
from services.control.metric_sinks import SINKS
from services.control.metrics import SAMPLES_FILE, MetricsConfig, MetricsWriter, SampleLog, read_metrics, read_samples
from tests.fakes import make_prompt, make_rollout

HOSTILE = '</pre><script>alert(1)</script>\n\x1b[31m\u2028\ud800 "quoted"'


def write(folder: Path, steps: range, *, resume_step: int = 0, sinks: tuple[str, ...] = (), shift: float = 0.0) -> None:
    writer = MetricsWriter(folder, sinks, resume_step=resume_step)
    for step in steps:
        writer.record(step, {"reward/mean": step / 10 + shift, "entropy": 1.0})
    writer.close()


def scored(row: int, *, num_samples: int = 2, completion: str = "text") -> ScoredGroup:
    prompt = make_prompt(row)
    rollouts = tuple(make_rollout(prompt, sample_index=i, completion=completion, version=4) for i in range(num_samples))
    rewards = tuple(
        Reward(value=row + i / 10, components={"exact_match": 1.0}, version="b") for i in range(num_samples)
    )
    return ScoredGroup(group=RolloutGroup(prompt=prompt, rollouts=rollouts), rewards=rewards)


def test_each_step_is_one_json_object_a_line_that_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, ())
    writer.record(1, {"reward/mean": 0.25})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "time_s": pytest.approx(0.0, abs=5.0), "reward/mean": 0.25}
    writer.record(2, {"reward/mean": 0.5})
    rows = read_metrics(tmp_path)
    assert [(row.step, dict(row.metrics)) for row in rows] == [(1, {"reward/mean": 0.25}), (2, {"reward/mean": 0.5})]
    writer.close()


def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, ())
    writer.record(1, {"policy_loss": math.nan, "gradient_norm/policy": math.inf, "entropy": 0.5})
    writer.close()

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    written = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (written["policy_loss"], written["gradient_norm/policy"]) == (None, None)
    metrics = read_metrics(tmp_path)[0].metrics
    assert math.isnan(metrics["policy_loss"])
    assert metrics["entropy"] == 0.5


@pytest.mark.parametrize(
    "torn", [b'{"step": 3, "time_s": 1.0, "rew', b'{"step": 3, "text": "\xe2\x82', b"\x00\x00\x00"]
)
def test_a_torn_last_line_is_left_out_and_a_resume_writes_on_after_it(tmp_path: Path, torn: bytes) -> None:
    write(tmp_path, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert [row.step for row in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, range(3, 5), resume_step=2)
    assert [row.step for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_damaged_line_before_the_last_is_named(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3))
    path = tmp_path / "metrics.jsonl"
    path.write_text("not json\n" + path.read_text())
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is not a JSON object.*'not json'.*delete"):
        read_metrics(tmp_path)


def test_a_resume_drops_the_rows_of_later_steps_and_its_clock_goes_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "time_s": 100.0 * step, "reward/mean": 0.0}) + "\n" for step in range(1, 6))
    )
    write(tmp_path, range(4, 7), resume_step=3, shift=1.0)
    rows = read_metrics(tmp_path)
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.metrics["reward/mean"] for row in rows[3:]] == [1.4, 1.5, 1.6]
    assert 300.0 <= rows[3].time_s < 400.0


def test_a_run_that_never_made_a_step_leaves_no_file(tmp_path: Path) -> None:
    write(tmp_path, range(0))
    with SampleLog(tmp_path, samples_per_step=1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_step_is_never_written_twice(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    writer = MetricsWriter(tmp_path, (), resume_step=3)
    with pytest.raises(AssertionError, match="step 3 was written already"):
        writer.record(3, {})
    writer.close()


def test_tensorboard_reads_the_events_back_and_forgets_the_steps_that_a_resume_makes_again(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6), sinks=("tensorboard",))
    write(tmp_path, range(3, 5), resume_step=2, sinks=("tensorboard",), shift=1.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["entropy", "reward/mean"]
    points = {event.step: round(event.value, 5) for event in events.Scalars("reward/mean")}
    assert points == {1: 0.1, 2: 0.2, 3: 1.3, 4: 1.4}


def test_tensorboard_files_are_written_without_torch_or_tensorflow() -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from services.control.metrics import MetricsWriter\n"
        "assert 'tensorboard' not in sys.modules\n"
        "import tempfile; writer = MetricsWriter(Path(tempfile.mkdtemp()), ['tensorboard'])\n"
        "writer.record(1, {'a': 1.0}); writer.close()\n"
        "assert not {'torch', 'tensorflow', 'ray', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_wandb_is_asked_for_by_name_and_its_absence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"'wandb', which is not installed; pip install 'trireme-rlhf\[wandb\]'"):
        MetricsWriter(tmp_path, ("wandb",))


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packages"
    package.mkdir()
    (package / "wandb.py").write_text(
        "calls = []\n"
        "class _Run:\n"
        "    def log(self, metrics, step): calls.append((step, metrics))\n"
        "    def finish(self): calls.append('finish')\n"
        "def init(**arguments):\n"
        "    calls.append(arguments)\n"
        "    return _Run()\n"
    )
    monkeypatch.syspath_prepend(package)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    writer = MetricsWriter(tmp_path / "run", ("wandb",), run_name="mine")
    writer.record(1, {"entropy": 0.5, "policy_loss": math.nan})
    writer.close()
    MetricsWriter(tmp_path / "run", ("wandb",), resume_step=1).close()
    MetricsWriter(tmp_path / "run", ("wandb",), resume_step=0).close()
    first, logged, _, resumed, _, anew, _ = sys.modules["wandb"].calls
    assert first["name"] == "mine"
    assert logged == (1, {"entropy": 0.5})
    assert resumed["id"] == first["id"] != anew["id"]


def test_an_unknown_sink_is_refused_with_the_list_of_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"\['tensorbord'\] are not destinations; choose from \['tensorboard', 'wandb'\]"
    ):
        MetricsWriter(tmp_path, ("tensorbord",))
    with pytest.raises(ValidationError, match="tensorbord"):
        MetricsConfig(sinks=("tensorbord",))
    assert set(MetricsConfig().sinks) <= set(SINKS)


def test_samples_are_spread_over_the_groups_and_read_back_whole(tmp_path: Path) -> None:
    with SampleLog(tmp_path, samples_per_step=3) as log:
        log.record(5, [scored(0), scored(1, completion=HOSTILE)])
    samples = read_samples(tmp_path)
    assert [(s.step, s.prompt_id, s.sample_index, s.reward) for s in samples] == [
        (5, "0-0", 0, 0.0),
        (5, "0-1", 0, 1.0),
        (5, "0-0", 1, 0.1),
    ]
    hostile = samples[1]
    assert hostile.completion == HOSTILE
    assert hostile.prompt == "prompt 1"
    assert hostile.reference == {"answer": "1"}
    assert hostile.components == {"exact_match": 1.0}
    assert (hostile.policy_version, hostile.finish_reason, hostile.reward_version) == (4, "stop", "b")


def test_a_chats_prompt_is_written_as_its_turns_and_as_the_text_that_was_continued(tmp_path: Path) -> None:
    turns = (Message(role="system", content="be kind"), Message(role="user", content="hi"))
    group = scored(0, num_samples=1).group
    chat = replace(group, prompt=replace(group.prompt, messages=turns, text="<system>be kind<user>hi<assistant>"))
    with SampleLog(tmp_path, samples_per_step=2) as log:
        log.record(1, [ScoredGroup(group=chat, rewards=(Reward(value=1.0),)), scored(1, num_samples=1)])

    in_chat, plain = (json.loads(line) for line in (tmp_path / SAMPLES_FILE).read_text().splitlines())
    assert in_chat["prompt"] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert in_chat["prompt_text"] == "<system>be kind<user>hi<assistant>"
    assert plain["prompt"] == "prompt 1"
    assert "prompt_text" not in plain
    samples = read_samples(tmp_path)
    assert [(sample.prompt, tuple(sample.messages)) for sample in samples] == [
        ("<system>be kind<user>hi<assistant>", turns),
        ("prompt 1", ()),
    ]


def test_a_sample_without_a_token_is_kept(tmp_path: Path) -> None:
    group = scored(0, num_samples=1)
    empty = array("i")
    rollout = replace(
        group.group.rollouts[0],
        token_ids=empty,
        logprobs=array("f"),
        policy_versions=empty,
        loss_mask=array("b"),
        num_prompt_tokens=0,
    )
    with SampleLog(tmp_path, samples_per_step=1) as log:
        log.record(1, [replace(group, group=replace(group.group, rollouts=(rollout,)))])
    assert read_samples(tmp_path)[0].policy_version == -1


def test_a_component_that_is_not_finite_is_nan_when_read(tmp_path: Path) -> None:
    group = scored(0, num_samples=1)
    reward = Reward(value=1.0, components={"broken": math.nan, "whole": 0.5})
    with SampleLog(tmp_path, samples_per_step=1) as log:
        log.record(1, [replace(group, rewards=(reward,))])
    (sample,) = read_samples(tmp_path)
    assert math.isnan(sample.components["broken"])
    assert sample.components["whole"] == 0.5


def test_the_steps_of_a_sample_are_read_back(tmp_path: Path) -> None:
    group = scored(0, num_samples=1)
    steps = (StepReward(start=0, end=1, value=0.5, token=3), StepReward(start=1, end=2, value=-1.0))
    with SampleLog(tmp_path, samples_per_step=1) as log:
        log.record(1, [replace(group, rewards=(Reward(value=1.0, steps=steps),))])
    assert tuple(read_samples(tmp_path)[0].steps) == steps


def test_a_resume_drops_the_samples_of_later_steps(tmp_path: Path) -> None:
    for resume_step, steps in ((0, (1, 2, 3)), (1, (2,))):
        with SampleLog(tmp_path, samples_per_step=2, resume_step=resume_step) as log:
            for step in steps:
                log.record(step, [scored(step)])
    assert [sample.step for sample in read_samples(tmp_path)] == [1, 1, 2, 2]
