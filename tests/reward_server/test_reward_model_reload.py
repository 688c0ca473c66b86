"""A reward model is replaced while it is served: nothing is dropped or mixed, and a bad one changes nothing."""

import asyncio
import gc
import logging
import shutil
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from reward_server.config import RewardServerConfig
from reward_server.reward_models.options import RewardModelOptions
from reward_server.reward_models.scorer import RewardModelScorer
from reward_server.reward_models.watch import ModelWatch
from services.contracts.errors import UserError
from services.contracts.records import Failure, Reward, RewardSample, reward_versions
from services.contracts.reward_model import RewardModelCard, read_card, write_card
from services.transport.reward_client import RewardClient
from services.transport.reward_settings import RewardClientConfig
from tests.reward_server.serving import make_samples, serving, until
from tests.tiny import write_tiny_reward_model

NUM_RELOADS = 20
NUM_CALLERS = 32


class FakeModel:
    """Scores every sample with 0, when the test lets it."""

    tokens_per_character = 1.0

    def __init__(self, folder: Path) -> None:
        self.card = read_card(folder)
        self.called = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def score(self, samples: Sequence[RewardSample]) -> list[Reward | Failure]:
        self.called.set()
        assert self.gate.wait(timeout=10.0)
        return [Reward(value=0.0, version=self.card.version) for _ in samples]


def point(link: Path, folder: Path) -> None:
    """Have `link` lead to `folder`, in one move."""
    new = link.with_name("new-link")
    new.symlink_to(folder)
    new.replace(link)


def write_version(folder: Path, version: str) -> Path:
    folder.mkdir()
    write_card(folder, RewardModelCard(version=version, max_tokens=64))
    return folder


@pytest.fixture
def latest(tmp_path: Path) -> Path:
    """A link to a model of version a."""
    point(tmp_path / "latest", write_version(tmp_path / "a", "a"))
    return tmp_path / "latest"


def by_link(latest: Path) -> None:
    point(latest, write_version(latest.parent / "b", "b"))


def by_folder(latest: Path) -> None:
    latest.unlink()
    write_version(latest, "b")


@pytest.mark.parametrize("replace", [by_link, by_folder])
async def test_another_model_at_the_path_takes_the_place_of_the_served_one(
    latest: Path, replace: Callable[[Path], None]
) -> None:
    models = ModelWatch(latest, FakeModel)
    await models.start()
    first = models.current
    await models.look()
    assert models.current is first
    replace(latest)
    await models.look()
    assert models.current.card.version == "b"


async def test_a_bad_model_is_told_once_and_the_served_one_is_kept(
    latest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = ModelWatch(latest, FakeModel)
    await models.start()
    (write_version(latest.parent / "bad", "b") / "reward_model.json").write_text("{")
    point(latest, latest.parent / "bad")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await models.look()
    assert models.current.card.version == "a"
    assert len(caplog.messages) == 1
    assert "reward model a is kept, for that in" in caplog.text and "not a valid reward model card" in caplog.text
    by_link(latest)
    await models.look()
    assert models.current.card.version == "b"
    assert (models.num_taken_up, models.num_refused) == (1, 1)


async def test_other_weights_under_the_served_version_are_refused(
    latest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = ModelWatch(latest, FakeModel)
    await models.start()
    first = models.current
    point(latest, write_version(latest.parent / "other", "a"))
    await models.look()
    assert models.current is first
    assert "its version is the same; another model needs another version" in caplog.text


async def test_while_nothing_stands_at_the_path_the_served_model_is_kept(latest: Path) -> None:
    models = ModelWatch(latest, FakeModel)
    await models.start()
    latest.unlink()
    await models.look()
    assert models.current.card.version == "a"


async def test_a_server_without_a_first_model_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no reward model"):
        await ModelWatch(tmp_path / "latest", FakeModel).start()


async def test_who_waits_for_a_version_gets_it_and_who_comes_later_the_next(latest: Path) -> None:
    models: dict[str, FakeModel] = {}

    def load(folder: Path, options: RewardModelOptions) -> FakeModel:
        return models.setdefault(folder.name, FakeModel(folder))

    scorer = RewardModelScorer(RewardModelOptions(path=latest, reload_every_s=0.01), RewardServerConfig(port=0), load)
    await scorer.start()
    models["a"].gate.clear()
    under_way = asyncio.create_task(scorer.score(make_samples(2)))
    await until(models["a"].called.is_set)
    waiting = asyncio.create_task(scorer.score(make_samples(2)))
    await asyncio.sleep(0)
    by_link(latest)
    await until(lambda: scorer.versions.current.card.version == "b")
    assert reward_versions(await scorer.score(make_samples(2))) == ["b"]
    models["a"].gate.set()
    assert reward_versions(await under_way + await waiting) == ["a"]
    await scorer.close()


async def test_an_old_version_is_let_go_with_its_thread(latest: Path) -> None:
    scorer = RewardModelScorer(
        RewardModelOptions(path=latest, reload_every_s=0.01),
        RewardServerConfig(port=0),
        lambda folder, _: FakeModel(folder),
    )
    await scorer.start()
    await scorer.score(make_samples(2))
    threads = [thread for thread in threading.enumerate() if thread.name == "reward"]
    served = weakref.ref(scorer.versions.current)
    by_link(latest)
    gc.disable()  # It may not take a collection: a model is large.
    try:
        await until(lambda: served() is None)
    finally:
        gc.enable()
    await until(lambda: not any(thread.is_alive() for thread in threads[-1:]))
    await scorer.close()


async def test_twenty_reloads_under_load_drop_no_call_and_mix_no_group(tmp_path: Path) -> None:
    # The mean on the card of version n is n, so that each score shows which version gave it.
    model = write_tiny_reward_model(tmp_path / "model")
    for number in range(NUM_RELOADS + 1):
        shutil.copytree(model, tmp_path / str(number))
        write_card(tmp_path / str(number), RewardModelCard(version=str(number), max_tokens=256, mean=number))
    point(tmp_path / "latest", tmp_path / "0")
    options = RewardModelOptions(path=tmp_path / "latest", device="cpu", reload_every_s=0.02, max_batch_tokens=64)
    config = RewardServerConfig(port=0, drain_s=0.0)
    scored: list[list[Reward | Failure]] = []
    done = asyncio.Event()

    async def call(client: RewardClient, samples: list[RewardSample]) -> None:
        while not done.is_set():
            scored.append(await client.score(samples))

    async with serving(RewardModelScorer(options, config), config) as address:
        client = RewardClient([address], RewardClientConfig(max_attempts=1, unavailable_budget_s=0.0))
        await client.describe(budget_s=30.0)
        samples = [RewardSample(id=str(i), prompt="1+1=", completion="it is " * i) for i in range(4)]
        callers = [asyncio.create_task(call(client, samples)) for _ in range(NUM_CALLERS)]
        for number in range(1, NUM_RELOADS + 1):
            point(tmp_path / "latest", tmp_path / str(number))
            await until(lambda number=number: bool(scored) and reward_versions(scored[-1]) == [str(number)])
        done.set()
        await asyncio.gather(*callers)
        await client.close()

    raw: set[tuple[float, ...]] = set()
    for outcomes in scored:
        assert not any(isinstance(outcome, Failure) for outcome in outcomes), outcomes
        (version,) = reward_versions(outcomes)
        raw.add(tuple(round(outcome.value + int(version), 4) for outcome in outcomes))  # type: ignore[union-attr]
    assert len(raw) == 1
    assert len({version for outcomes in scored for version in reward_versions(outcomes)}) == NUM_RELOADS + 1
