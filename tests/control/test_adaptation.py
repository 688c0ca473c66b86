"""The loop that labels a run's samples and retrains its reward model: what it tells."""

from pathlib import Path

from services.contracts.records import Failure, FailureCode, RewardSample
from services.contracts.reward_model import RewardModelCard, write_card
from services.control import run_folder
from services.control.adaptation import AdaptConfig, follow
from services.control.fresh_pairs import PairQueue
from services.control.reward_versions import RewardVersions
from tests.control.test_fresh_pairs import sample, scored
from tests.fakes import FakeRewards


def no_reference(sample: RewardSample) -> Failure:
    return Failure(code=FailureCode.INVALID_SAMPLE, message="reference.answer is None")


async def test_prompts_that_cannot_be_labelled_are_told(tmp_path: Path) -> None:
    run, initial = tmp_path / "run", tmp_path / "initial"
    initial.mkdir()
    write_card(initial, RewardModelCard(version="first", max_tokens=64))
    sample(run, after=0, steps=[[scored(0, "1", "a"), scored(1, "2", "b")], [scored(2, "3", "c")]])
    (run / run_folder.SUMMARY_FILE).write_text("{}")
    section = {"dir": tmp_path / "adapt", "follow": run, "initial": initial, "trainer": tmp_path}
    config = AdaptConfig.model_validate({"run": section, "labels": {"services": [{"name": "exact_match"}]}})
    told: list[str] = []
    versions = RewardVersions(config.run, told.append)
    versions.begin()
    queue = PairQueue(config.run.dir, run, config.pairs)

    await follow(config, queue, FakeRewards(no_reference), versions)
    queue.close()

    assert told[0] == "2 prompts could not be labelled; the last: invalid_sample: reference.answer is None"
    assert "has ended" in told[-1]
