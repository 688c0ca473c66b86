"""Checkpoints in another process, and checkpoints that must be refused."""

import json
import math
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_learner.checkpoints import LearnerState, load_state, save_state, writing
from ppo_learner.config import LearnerConfig
from ppo_learner.ranks import Ranks
from services.contracts.errors import CheckpointError
from tests.ppo_learner.builders import ALONE, random_groups, run_in_processes, start_rank, weights_of

STATE = LearnerState(step=3, kl_coefficient=0.1, skipped_in_a_row=1)
CONFIG = LearnerConfig(lr=1e-3, critic_lr=1e-3, num_epochs=2, num_minibatches=2, lr_schedule="cosine")


def finish_in_another_process(model: Path, folder: Path) -> None:
    torch.set_num_threads(1)  # As here: how many there are decides how sums are taken.
    rank = start_rank(CONFIG, model)
    rank.load(folder / "checkpoint")
    for step in (2, 3):
        rank.step(random_groups(step))
    torch.save(weights_of(rank), folder / "weights.pt")
    rank.close()


def test_a_run_resumed_by_a_new_process_gives_the_same_weights_to_the_bit(tiny_model: Path, tmp_path: Path) -> None:
    rank = start_rank(CONFIG, tiny_model)
    for step in range(4):
        rank.step(random_groups(step))
        if step == 1:
            rank.save(tmp_path / "checkpoint")
    straight = weights_of(rank)
    rank.close()
    run_in_processes(finish_in_another_process, [(tiny_model, tmp_path)], deadline_s=60)
    resumed = torch.load(tmp_path / "weights.pt")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(weight, resumed[name]) for name, weight in straight.items())


@pytest.mark.parametrize(
    ("saved", "kl_target", "resumed"),
    [(0.1, None, 0.5), (0.0, None, 0.5), (0.1, 1.0, 0.1), (0.0, 1.0, 0.5), (math.nan, 1.0, 0.5)],
)
def test_a_resumed_run_has_the_coefficient_of_its_settings_unless_it_was_steered(
    saved: float, kl_target: float | None, resumed: float, tiny_model: Path, tmp_path: Path
) -> None:
    rank = start_rank(LearnerConfig(algorithm="rloo", kl_coefficient=0.5, kl_target=kl_target), tiny_model)
    try:
        rank.save(tmp_path)
        save_state(tmp_path, LearnerState(step=3, kl_coefficient=saved), ALONE)
        rank.load(tmp_path)
        assert rank.step(random_groups(0)).metrics["kl_coefficient"] == resumed
    finally:
        rank.close()


def test_counters_and_random_states_come_back(tmp_path: Path) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    save_state(tmp_path, STATE, ALONE)
    expected = draws()
    draws()
    assert load_state(tmp_path, ALONE) == STATE
    assert draws() == expected


def test_a_rank_that_was_not_there_keeps_the_random_states_of_its_seed(tmp_path: Path) -> None:
    save_state(tmp_path, STATE, ALONE)
    torch.manual_seed(7)
    assert load_state(tmp_path, Ranks(rank=1, world_size=2, device=ALONE.device)) == STATE
    assert torch.initial_seed() == 7


def test_an_incomplete_checkpoint_is_refused_by_file_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"learner\.json"):
        load_state(tmp_path, ALONE)
    save_state(tmp_path, STATE, ALONE)
    (tmp_path / "random_rank_0.pt").unlink()
    with pytest.raises(CheckpointError, match=r"random_rank_0\.pt"):
        load_state(tmp_path, ALONE)


def test_a_checkpoint_of_another_version_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    save_state(tmp_path, STATE, ALONE)
    content = json.loads((tmp_path / "learner.json").read_text())
    del content["return_moments"]
    (tmp_path / "learner.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="has no return_moments"):
        load_state(tmp_path, ALONE)


def test_what_is_neither_weights_nor_random_state_is_readable_by_people(tmp_path: Path) -> None:
    save_state(tmp_path, STATE, ALONE)
    content = json.loads((tmp_path / "learner.json").read_text())
    moments = {"count": 0, "mean": 0.0, "squares": 0.0}
    counters = {"step": 3, "kl_coefficient": 0.1, "skipped_in_a_row": 1}
    assert content == {"world_size": 1, "return_moments": moments, **counters}


def test_what_the_disk_refuses_is_told_as_a_checkpoint_error_and_other_failures_as_they_are(tmp_path: Path) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    try:
        with pytest.raises(CheckpointError, match="could not be written"), writing(tmp_path):
            torch.save(torch.zeros(10_000), tmp_path / "weights.pt")
        with pytest.raises(CheckpointError, match="File too large"), writing(tmp_path):
            (tmp_path / "learner.json").write_text("." * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    with pytest.raises(RuntimeError, match="another rank"), writing(tmp_path):
        raise RuntimeError("another rank is gone")
