"""Spans of characters to tokens, with real tokenizers: characters, byte-level BPE, and bytes as a fallback."""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache, partial
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from services.contracts.records import Reward, RolloutGroup, ScoredGroup, StepReward
from services.control.step_tokens import Decode, GrowingText, locate_steps
from tests.fakes import make_prompt, make_rollout
from tests.tiny import END_OF_SEQUENCE, tiny_tokenizer

CORPUS = ["one step\nand one more: 2 + 3 = 5 €\n", "naïve 日本語 𝔘𝔫𝔦 👩‍👩‍👧 smile 😀\n", "the steps, the steps"]


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE with some merges within and across characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=[END_OF_SEQUENCE], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 8, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_SEQUENCE)


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: words begin with ▁, a leading space is stripped, what is unknown comes as bytes."""
    pieces = [END_OF_SEQUENCE, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁step", "s", "one", ".", "5"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_SEQUENCE)


def decoder(tokenizer: PreTrainedTokenizerFast) -> Decode:
    return partial(tokenizer.decode, skip_special_tokens=True)


def ending_tokens(token_ids: Sequence[int], ends: Sequence[int], decode: Decode) -> list[int]:
    text = GrowingText(token_ids, decode(list(token_ids)), decode)
    return [text.ending_token(end) for end in ends]


def by_definition(token_ids: Sequence[int], end: int, decode: Decode) -> int:
    """The first token after which the text so far has character `end - 1` as the whole text has it."""
    text = decode(list(token_ids))
    if end == len(text):
        return len(token_ids) - 1
    prefixes = (decode(list(token_ids[:count])) for count in range(1, len(token_ids) + 1))
    return next(i for i, prefix in enumerate(prefixes) if prefix[:end] == text[:end])


def by_bytes(token_ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The token that has the last byte of character `end - 1`, of valid UTF-8 in byte-level tokens."""
    tokens = byte_level().convert_ids_to_tokens(list(token_ids))
    num_bytes = list(accumulate(len(token) for token in tokens))  # One stand-in character a byte.
    text = decoder(byte_level())(list(token_ids))
    return [bisect_left(num_bytes, len(text[:end].encode())) for end in ends]


def test_a_character_in_several_tokens_ends_with_the_last_of_them() -> None:
    ids = [byte_level().convert_tokens_to_ids(character) for character in "5ðŁ¦ĳ."]  # "5🦑.", byte by byte
    assert decoder(byte_level())(ids) == "5🦑."
    assert ending_tokens([*ids, 0], [1, 2, 3], decoder(byte_level())) == [0, 4, 6]


def test_a_step_that_reaches_the_end_has_the_end_of_sequence_and_one_before_it_has_not() -> None:
    tokenizer = tiny_tokenizer()
    ids = [*tokenizer.encode("4+2=6"), tokenizer.eos_token_id]
    assert ending_tokens(ids, [2, 4], decoder(tokenizer)) == [1, 3]
    assert ending_tokens(ids, [2, 5], decoder(tokenizer)) == [1, 5]


def test_a_token_that_ends_two_steps_is_given_to_both() -> None:
    tokenizer = byte_level()
    (step,) = (index for token, index in tokenizer.get_vocab().items() if token == "steps" or token == "Ġsteps")
    text = tokenizer.decode([step])
    assert ending_tokens([step, step], [1, len(text), 2 * len(text) - 1], decoder(tokenizer)) == [0, 0, 1]


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), byte_level()], ids=["characters", "byte_level"])
@settings(max_examples=50)
@given(data=st.data())
def test_any_tokens_agree_with_the_definition(tokenizer: PreTrainedTokenizerFast, data: st.DataObject) -> None:
    """Random bytes are mostly no valid UTF-8, and end-of-sequence tokens come in between."""
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=150))
    agree_with_the_definition(ids, decoder(tokenizer), data)


@settings(max_examples=50)
@given(text=st.text(st.sampled_from("step one.5€😀 \n"), min_size=1, max_size=120), data=st.data())
def test_any_text_in_pieces_and_bytes_agrees_with_the_definition(text: str, data: st.DataObject) -> None:
    pieces = text.replace(" ", "▁")
    agree_with_the_definition(byte_fallback().encode(pieces, add_special_tokens=False), decoder(byte_fallback()), data)


def agree_with_the_definition(ids: Sequence[int], decode: Decode, data: st.DataObject) -> None:
    if text := decode(list(ids)):
        ends = sorted(data.draw(st.sets(st.integers(1, len(text)), min_size=1, max_size=4)))
        assert ending_tokens(ids, ends, decode) == [by_definition(ids, end, decode) for end in ends]


@settings(max_examples=50)
@given(ids=st.lists(st.integers(0, 257), min_size=1, max_size=200), data=st.data())
def test_bytes_that_are_no_text_still_give_every_step_a_token(ids: list[int], data: st.DataObject) -> None:
    text = decoder(byte_fallback())(ids)
    ends = sorted(data.draw(st.sets(st.integers(1, max(1, len(text))), max_size=6)))
    found = ending_tokens(ids, ends, decoder(byte_fallback()))
    assert found == sorted(found)
    assert all(0 <= token < len(ids) for token in found)


@settings(max_examples=50)
@given(text=st.text(st.characters(codec="utf-8"), min_size=2, max_size=300), data=st.data())
def test_any_text_in_bytes_agrees_with_counting_them(text: str, data: st.DataObject) -> None:
    ids = byte_level().encode(text, add_special_tokens=False)
    ends = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=20)))
    assert ending_tokens(ids, ends, decoder(byte_level())) == by_bytes(ids, ends)


def test_a_cut_stop_text_belongs_to_the_last_step() -> None:
    tokenizer = tiny_tokenizer()
    text = GrowingText(tokenizer.encode("4+2=6??"), "4+2=6", decoder(tokenizer))
    assert [text.ending_token(end) for end in (3, 5)] == [2, 6]


def test_the_steps_of_a_group_get_positions_in_the_whole_rollout() -> None:
    tokenizer, prompt = tiny_tokenizer(), make_prompt(0)
    rollouts = [
        make_rollout(prompt, sample_index=index, completion_ids=tokenizer.encode(text), completion=text)
        for index, text in enumerate(["12=3", "1"])
    ]
    steps = (StepReward(start=0, end=2, value=0.5), StepReward(start=2, end=4, value=-1.0))
    scored = ScoredGroup(
        group=RolloutGroup(prompt=prompt, rollouts=tuple(rollouts)),
        rewards=(Reward(value=1.0, components={"a": 2.0}, steps=steps), Reward(value=0.0)),
    )
    located = locate_steps(scored, decoder(tokenizer))
    assert prompt.token_ids == array("i", [1, 2, 3])
    assert [step.token for step in located.rewards[0].steps] == [4, 6]
    assert [(step.start, step.end, step.value) for step in located.rewards[0].steps] == [(0, 2, 0.5), (2, 4, -1.0)]
    assert (located.rewards[0].value, located.rewards[1], located.group) == (1.0, scored.rewards[1], scored.group)
