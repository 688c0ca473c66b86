"""An environment's answer in tokens: after plain text, and as each kind of chat template writes a turn."""

import pytest

from rollout_workers.dialogue_tokens import DialogueTokens
from services.contracts.errors import UserError
from tests.tiny import tiny_tokenizer

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = "{{ messages[-1].content }}"
EOS, DOT = 1, 2


def tokens(template: str | None = None) -> DialogueTokens:
    tokenizer = tiny_tokenizer("." + "abcdefghijklmnopqrstuvwxyz<>+")
    tokenizer.chat_template = template
    return DialogueTokens(tokenizer, "tool")


def test_in_plain_text_an_answer_is_its_own_text() -> None:
    dialogue = tokens()
    assert dialogue.text(dialogue.answer("a+b", in_chat=False, after=DOT)) == "a+b"
    assert dialogue.answer("", in_chat=False, after=DOT) == []


def test_in_a_chat_an_answer_is_a_turn_up_to_where_the_policys_begins() -> None:
    dialogue = tokens(CHATML)
    ended_by_itself = dialogue.answer("a", in_chat=True, after=EOS)
    ended_by_a_stop_text = dialogue.answer("a", in_chat=True, after=DOT)
    assert dialogue.text(ended_by_itself) == "<tool>a<assistant>"
    assert ended_by_a_stop_text == [EOS, *ended_by_itself]


def test_a_template_that_cannot_show_a_dialogue_is_refused() -> None:
    with pytest.raises(UserError, match=r"leaves out what the assistant said before"):
        tokens(FORGETFUL).answer("a", in_chat=True, after=EOS)
    with pytest.raises(UserError, match=r"has no chat template"):
        tokens().answer("a", in_chat=True, after=EOS)
