"""Checkpoints are all or nothing, and only whole ones are loaded."""

import os
import resource
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.contracts.errors import CheckpointError
from services.control import run_state
from services.control.run_state import RunState


def save_bytes(content: bytes) -> Callable[[Path], Awaitable[None]]:
    async def save(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(content)

    return save


async def save_nothing(folder: Path) -> None:
    """As on a machine that does not share the folder."""


async def commit(folder: Path, step: int, *, keep: int = 3) -> Path:
    state = RunState(step=step, prompt_position=step * 4, event_counts={"trained": step * 4})
    return await run_state.commit(folder, state, save_learner=save_bytes(b"x" * step), keep=keep)


async def test_the_newest_checkpoint_comes_back_with_its_state(tmp_path: Path) -> None:
    await commit(tmp_path, 9)
    path = await commit(tmp_path, 10)
    found, state, faults = run_state.newest(tmp_path)
    assert found == path
    assert (state.step, state.prompt_position, state.event_counts["trained"]) == (10, 40, 40)
    assert faults == []


async def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        await commit(tmp_path, step, keep=2)
    assert [path.name for path in run_state.committed(tmp_path)] == ["step_4", "step_3"]


async def test_a_copy_beside_the_checkpoints_is_left_alone(tmp_path: Path) -> None:
    first = await commit(tmp_path, 1)
    copies = [shutil.copytree(first, tmp_path / name) for name in ("step_1_good", "step_1_1", "step_1.5")]
    await commit(tmp_path, 2, keep=1)
    assert [path.name for path in run_state.committed(tmp_path)] == ["step_2"]
    assert run_state.newest(tmp_path)[1].step == 2
    assert all(copy.is_dir() for copy in copies)


async def test_a_run_that_went_back_past_a_damaged_checkpoint_keeps_its_new_ones(tmp_path: Path) -> None:
    for step in (1, 5):
        await commit(tmp_path, step, keep=2)
    (tmp_path / "step_5" / "learner" / "weights.bin").unlink()
    assert run_state.newest(tmp_path)[1].step == 1
    await commit(tmp_path, 2, keep=2)
    assert [path.name for path in run_state.committed(tmp_path)] == ["step_2", "step_1"]


@pytest.mark.parametrize("damage", ["changed", "missing", "commit"])
async def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    await commit(tmp_path, 1)
    newest = await commit(tmp_path, 2)
    weights = newest / "learner" / "weights.bin"
    if damage == "changed":
        weights.write_bytes(b"yy")
    elif damage == "missing":
        weights.unlink()
    else:
        (newest / "COMMIT").write_text("{")
    found, state, faults = run_state.newest(tmp_path)
    assert (found.name, state.step) == ("step_1", 1)
    assert faults[0].startswith("step_2: ")


async def test_a_checkpoint_whose_learner_wrote_elsewhere_is_none(tmp_path: Path) -> None:
    await commit(tmp_path, 1)
    await run_state.commit(tmp_path, RunState(step=2, prompt_position=8), save_learner=save_nothing, keep=3)
    _, state, faults = run_state.newest(tmp_path)
    assert state.step == 1
    assert faults == ["step_2: it has no files of the learner, who wrote them elsewhere"]


async def test_a_crash_in_the_middle_of_a_save_leaves_the_last_commit(tmp_path: Path) -> None:
    await commit(tmp_path, 1)

    async def crash(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "half.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await run_state.commit(tmp_path, RunState(step=2, prompt_position=8), save_learner=crash, keep=1)
    found, state, _ = run_state.newest(tmp_path)
    assert (found.name, state.step) == ("step_1", 1)
    await commit(tmp_path, 2)
    assert run_state.newest(tmp_path)[1].step == 2


CHANGES: list[tuple[object, str]] = [
    *((Path, name) for name in ("mkdir", "write_text", "write_bytes", "rename")),
    (os, "fsync"),
    (shutil, "rmtree"),
]


class Crash(BaseException):
    """The process ends here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, point: int) -> list[str]:
    """End the process before its `point`th change to the disk; gives the names of the changes before."""
    made: list[str] = []

    def watched(owner: object, name: str) -> None:
        change = getattr(owner, name)

        def change_or_crash(*args: object, **options: object) -> object:
            if len(made) == point:
                raise Crash
            made.append(name)
            return change(*args, **options)

        monkeypatch.setattr(owner, name, change_or_crash)

    for owner, name in CHANGES:
        watched(owner, name)
    return made


@pytest.mark.parametrize("step", [1, 2])
async def test_a_crash_before_any_change_to_the_disk_leaves_a_whole_checkpoint(step: int, tmp_path: Path) -> None:
    """Of one checkpoint that is kept, by the next one and by one of the same step."""
    for point in range(100):
        folder = tmp_path / str(point)
        folder.mkdir()
        await commit(folder, 1, keep=1)
        with pytest.MonkeyPatch.context() as patched:
            made = crash_at(patched, point)
            try:
                await commit(folder, step, keep=1)
            except Crash:
                pass
            else:
                break
        run_state.finish_commit(folder)
        assert run_state.newest(folder)[1].step in {1, step}
        await commit(folder, 3, keep=1)
        assert run_state.newest(folder)[1].step == 3
    assert set(made) == {name for _, name in CHANGES} and point >= 15


async def test_a_checkpoint_whose_seal_was_not_finished_gets_no_name(tmp_path: Path) -> None:
    sealed = await commit(tmp_path, 2)
    torn = sealed.rename(tmp_path / ".step_2.partial")
    (torn / "COMMIT").write_text((torn / "COMMIT").read_text()[:-20])
    await commit(tmp_path, 1)
    run_state.finish_commit(tmp_path)
    assert [path.name for path in run_state.committed(tmp_path)] == ["step_1"]


async def test_a_full_disk_says_so_and_keeps_the_last_commit(tmp_path: Path) -> None:
    await commit(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 2 could not be written .* the last good one is step_1"):
            await run_state.commit(
                tmp_path, RunState(step=2, prompt_position=8), save_learner=save_bytes(b"x" * 5000), keep=1
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert run_state.newest(tmp_path)[1].step == 1
    assert list(tmp_path.glob(".step_*")) == []


def test_no_checkpoint_at_all_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is none"):
        run_state.newest(tmp_path)
