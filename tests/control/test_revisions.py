"""Critique and revision by a constitution: what is asked, what is written, and what a bad revision does."""

import asyncio
import json
from pathlib import Path

import pytest

from rollout_workers.demonstrations import load_demonstrations
from rollout_workers.prompts import DataConfig
from services.cli.__main__ import main
from services.cli.arguments import load_config
from services.contracts.errors import UserError
from services.control.constitution import Constitution, Principle, draw_principles, load_constitution
from services.control.revisions import ReviseConfig, Revised, revise_drafts
from tests.end_to_end.command import json_lines, write_config
from tests.reward_server.fake_judge import Body, Mind, fake_endpoint, keys_of, texts_of

EXAMPLES = Path(__file__).parents[2] / "examples"
CONSTITUTION = """
principles:
  - {name: calm, critique: "Point out shouting.", revision: "Write it without shouting."}
"""
DRAFTS = [{"prompt": "Hello?", "completion": "WHAT!"}, {"prompt": "And you?", "completion": "Well."}]


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, dict[str, object]]:
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    (tmp_path / "drafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DRAFTS))
    return {
        "run": {"dir": str(tmp_path / "revised")},
        "drafts": {"rows": str(tmp_path / "drafts.jsonl")},
        "revision": {"constitution": str(tmp_path / "constitution.yaml"), "rounds": 1},
    }


def editor(*, good: bool = True) -> Mind:
    """Finds shouting, writes it in small letters, and prefers those (or, if not `good`, the shouting)."""

    def mind(body: Body) -> dict[str, object]:
        texts, keys = texts_of(body), keys_of(body)
        if "violated" in keys:
            return {"critique": "It shouts.", "violated": "yes" if texts["ANSWER"].isupper() else "no"}
        if "revision" in keys:
            assert texts["CRITIQUE"] == "It shouts."
            return {"revision": texts["ANSWER"].lower()}
        return {"better": "A" if texts["ANSWER A"].islower() == good else "B", "strength": 3}

    return mind


async def revised(sections: dict[str, dict[str, object]], mind: Mind) -> tuple[Revised, list[Body]]:
    async with fake_endpoint(mind) as endpoint:
        config = ReviseConfig.model_validate({**sections, "judge": endpoint.config().model_dump()})
        return await revise_drafts(config, tell=print), endpoint.bodies


async def test_a_violation_is_revised_and_what_is_well_stays(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    found, bodies = await revised(sections, editor())

    assert json_lines(tmp_path / "revised" / "demonstrations.jsonl") == [
        {"prompt": "Hello?", "response": "what!"},
        {"prompt": "And you?", "response": "Well."},
    ]
    (preference,) = json_lines(tmp_path / "revised" / "preferences.jsonl")
    assert (preference["chosen"], preference["rejected"], preference["margin"]) == ("what!", "WHAT!", 3.0)
    assert [outcome.violated for outcome in found.outcomes] == [["calm"], []]
    # Two critiques, one revision, one comparison in both orders.
    assert len(bodies) == 5
    assert "Point out shouting." in str(bodies) and "Write it without shouting." in str(bodies)


class CharacterTokenizer:
    """One token for each character."""

    eos_token_id = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(character) for character in text]


async def test_demonstrations_are_what_supervised_training_reads(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    await revised(sections, editor())
    path = tmp_path / "revised" / "demonstrations.jsonl"
    data = DataConfig(prompts=str(path), response_field="response", template="plain")
    first, _ = load_demonstrations(data, CharacterTokenizer(), max_length=100)
    assert first.token_ids.tolist() == [*map(ord, "Hello?what!"), 0]
    assert sum(first.loss_mask) == len("what!") + 1


async def test_a_revision_that_is_not_preferred_to_its_draft_is_not_learnt(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    found, _ = await revised(sections, editor(good=False))
    assert [row["response"] for row in json_lines(tmp_path / "revised" / "demonstrations.jsonl")] == ["WHAT!", "Well."]
    assert json_lines(tmp_path / "revised" / "preferences.jsonl") == []
    assert (found.outcomes[0].revision, found.outcomes[0].better) == ("what!", None)


async def test_without_a_check_the_revision_is_taken_at_its_word(
    sections: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    sections["revision"]["check"] = False
    _, bodies = await revised(sections, editor(good=False))
    assert len(bodies) == 3
    assert len(json_lines(tmp_path / "revised" / "preferences.jsonl")) == 1


async def test_revisions_of_other_settings_are_not_mixed_in(sections: dict[str, dict[str, object]]) -> None:
    await revised(sections, editor())
    sections["revision"]["rounds"] = 2
    with pytest.raises(UserError, match=r"holds 1 rounds of .*, checked, and this would add 2 rounds of"):
        await revised(sections, editor())


async def test_a_revision_to_nothing_is_none(sections: dict[str, dict[str, object]], tmp_path: Path) -> None:
    edits = editor()
    found, _ = await revised(sections, lambda body: {"revision": " "} if "revision" in keys_of(body) else edits(body))
    assert found.num_failed == 1
    assert [row["response"] for row in json_lines(tmp_path / "revised" / "demonstrations.jsonl")] == ["Well."]


async def test_the_command_counts_violations(
    sections: dict[str, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with fake_endpoint(editor()) as endpoint:
        judge = endpoint.config().model_dump(mode="json")
        path = write_config(tmp_path / "revise.yaml", **sections, judge=judge)
        assert await asyncio.to_thread(main, ["revise", path]) == 0
    told = capsys.readouterr().out
    assert "revised          1 of 2 drafts, 1 for the better" in told
    assert "violated         calm: 1 times" in told


def test_principles_are_drawn_by_seed_and_each_once_before_one_comes_twice() -> None:
    principles = tuple(Principle(name=str(number), critique="c", revision="r") for number in range(5))
    constitution = Constitution(principles=principles)

    def names(count: int, seed: str) -> list[str]:
        return [principle.name for principle in draw_principles(constitution, count, seed=seed)]

    assert names(3, "a") == names(3, "a")
    assert sorted(names(5, "a")) == sorted(names(10, "a")[5:]) == list("01234")
    assert len({tuple(names(5, str(seed))) for seed in range(10)}) > 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("principles: [", "not valid YAML"),
        ("principles: []", "principles: Tuple should have at least 1 item"),
        ("principles: [{name: a, critique: b}]", r"principles\.0\.revision: Field required"),
        ("rules: []", "rules: Extra inputs"),
        ("- a", "file: Input should be a valid dictionary"),
    ],
)
def test_a_constitution_that_is_wrong_is_told_by_its_place(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "constitution.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        load_constitution(path)


def test_the_examples_are_valid() -> None:
    config = load_config(ReviseConfig, [str(EXAMPLES / "revise.yaml")], prog="", summary="")
    constitution = load_constitution(EXAMPLES.parent / config.revision.constitution)
    assert config.revision.rounds <= len(constitution.principles)
