"""What a dialogue is to those who judge it and those who sample it."""

from services.contracts.dialogue import Dialogue
from services.contracts.records import Message, RewardSample
from services.contracts.seeds import sampling_seed

TURNS = (
    Message(role="assistant", content="is it 3?"),
    Message(role="tool", content="higher"),
    Message(role="assistant", content="4"),
)


def test_the_answer_is_what_the_policy_said_last() -> None:
    assert RewardSample(id="a", completion="is it 3?higher4", turns=TURNS).answer == "4"
    assert RewardSample(id="a", completion="in one piece").answer == "in one piece"


def test_a_dialogue_counts_the_policys_turns() -> None:
    dialogue = Dialogue(prompt="", turns=TURNS)
    assert (dialogue.number, dialogue.said) == (2, "4")


def test_each_turn_has_a_seed_of_its_own_and_the_first_that_of_a_completion_in_one_piece() -> None:
    identity = {"run_seed": 1, "prompt_id": "0-1", "sample_index": 2, "policy_version": 3}
    seeds = [sampling_seed(**identity, turn=turn) for turn in range(20)]  # type: ignore[arg-type]
    assert seeds[0] == sampling_seed(**identity)  # type: ignore[arg-type]
    assert len(set(seeds)) == 20
