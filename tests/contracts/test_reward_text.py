"""What a reward model reads: the same tokens whether it is trained or served."""

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from services.contracts.errors import UserError
from services.contracts.records import Message
from services.contracts.reward_text import LONGEST_TOKEN, RewardText, Template, encode_reward_text
from tests.tiny import tiny_tokenizer

CHAT = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """A character tokenizer that puts a special token at both ends, as encoders have it."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A <eos>", special_tokens=[("<pad>", 0), ("<eos>", 1)]
    )
    return tokenizer


def read(
    completion: str,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    prompt: str = "12+34=",
    messages: tuple[Message, ...] = (),
    template: Template = "plain",
    max_tokens: int = 100,
    step_ends: tuple[int, ...] = (),
) -> tuple[str, RewardText]:
    tokenizer = tokenizer or tiny_tokenizer()
    text = encode_reward_text(
        tokenizer,
        prompt=prompt,
        messages=messages,
        completion=completion,
        template=template,
        max_tokens=max_tokens,
        step_ends=step_ends,
    )
    return "".join(tokenizer.convert_ids_to_tokens(list(text.token_ids))), text


def test_a_plain_text_is_the_prompt_and_the_completion_with_the_tokenizer_s_own_special_tokens() -> None:
    assert read("46")[0] == "12+34=46"
    assert read("46", tokenizer=encoder_tokenizer())[0] == "<pad>12+34=46<eos>"


def test_a_chat_ends_where_the_completion_ends_and_has_no_special_tokens_but_the_template_s() -> None:
    tokenizer = encoder_tokenizer()
    tokenizer.chat_template = CHAT
    turns = (Message(role="user", content="hi"), Message(role="assistant", content="yo"))
    assert read("bye.", tokenizer=tokenizer, messages=turns, template="chat")[0].replace("<pad>", ":") == (
        "u:hi a:yo a:bye."
    )
    assert read("46", tokenizer=tokenizer, template="chat")[0].replace("<pad>", ":") == "u:12+34= a:46"
    with pytest.raises(UserError, match="has no chat template"):
        read("46", template="chat")


def test_a_long_text_loses_its_beginning_and_says_how_much() -> None:
    assert read("46", max_tokens=5)[0] == "34=46"
    shown, text = read("46", tokenizer=encoder_tokenizer(), max_tokens=5)
    assert shown == "<pad>=46<eos>"
    assert text.num_left_out == 5
    assert read("46")[1].num_left_out == 0


def test_a_step_is_found_at_its_last_token_wherever_the_text_was_cut() -> None:
    steps = (2, 5)  # "4+" and "2=6"
    assert read("4+2=6", step_ends=steps)[1].step_positions == (7, 10)
    assert read("4+2=6", step_ends=steps, tokenizer=encoder_tokenizer())[1].step_positions == (8, 11)
    assert read("4+2=6", step_ends=steps, max_tokens=4)[1].step_positions == (0, 3)
    assert read("4+2=6", step_ends=steps, max_tokens=3)[1].step_positions == (None, 2)


def test_of_a_text_that_is_far_too_long_the_end_alone_is_read() -> None:
    end = "b" * (100 * LONGEST_TOKEN)
    (_, long), (_, short) = (read(text, step_ends=(5, len(text))) for text in ("a" * 10_000_000 + end, "a" + end))
    assert long.token_ids == short.token_ids
    assert long.step_positions == short.step_positions == (None, 99)
    assert long.num_left_out >= 100 * LONGEST_TOKEN - 100
