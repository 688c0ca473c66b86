"""Which token ends each step of a completion: from spans of characters to positions of tokens.

Of a tokenizer it may know only how that makes text of tokens. A step ends with the first token after which the text so
far holds the step's last character, whole: of a character in several tokens that is the last of them. A step that
reaches the end of the text ends with the completion's last token, so that an end of sequence belongs to it. Invariant:
every step gets a token, and no later step an earlier one.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from services.contracts.records import Reward, Rollout, ScoredGroup

Decode = Callable[[list[int]], str]
"""The text of some tokens, without special ones."""

_BLOCK = 64
_CONTEXT = 16
"""Tokens decoded before those in question: more than one character can have, or a decoder strips at the beginning."""
_INCOMPLETE = "\ufffd"


def locate_steps(scored: ScoredGroup, decode: Decode) -> ScoredGroup:
    """The same group, each step of its rewards with its `token`."""
    pairs = zip(scored.group.rollouts, scored.rewards, strict=True)
    return replace(scored, rewards=tuple(_located(rollout, reward, decode) for rollout, reward in pairs))


def _located(rollout: Rollout, reward: Reward, decode: Decode) -> Reward:
    if not reward.steps:
        return reward
    first = rollout.num_prompt_tokens
    text = GrowingText(rollout.token_ids[first:], rollout.completion, decode)
    steps = (replace(step, token=first + text.ending_token(step.end)) for step in reward.steps)
    return replace(reward, steps=tuple(steps))


class GrowingText:
    """A completion's text, as it grows token by token.

    What a token adds can depend on those before it, so prefixes are measured: each by how much longer its last tokens
    are together with some before them than those alone.

    Args:
        token_ids: of the completion; at least one.
        text: what they say; where a stop text was cut from it, the tokens may say more.
    """

    def __init__(self, token_ids: Sequence[int], text: str, decode: Decode) -> None:
        self._token_ids = list(token_ids)
        self._text = text
        self._decode = decode
        self._last = 0  # The token found last.
        self._num_known = 0  # So many tokens do not hold the character asked for.
        self._begin = 0  # Text is decoded from this token on,
        self._offset = 0  # and begins after so many characters.

    def ending_token(self, end: int) -> int:
        """Which token completes the first `end` characters (1 or more); to be asked in ascending order."""
        num_tokens = len(self._token_ids)
        if end >= len(self._text):
            return num_tokens - 1
        while (stop := min(self._num_known + _BLOCK, num_tokens)) < num_tokens and not self._holds(stop, end):
            self._skip_to(stop)
        candidates = range(self._num_known + 1, stop)
        count = self._num_known + 1 + bisect_left(candidates, True, key=lambda count: self._holds(count, end))
        self._last = self._earliest(count, end) - 1
        return self._last

    def _earliest(self, num_tokens: int, end: int) -> int:
        """The same number, or a smaller one after which the text was broken until then: where characters come byte by
        byte, some decoders break one that was whole until the next is whole, too."""
        for before in range(num_tokens - 1, max(self._begin, self._last), -1):
            if self._holds(before, end):
                num_tokens = before
            elif not self._decoded(before).endswith(_INCOMPLETE):
                break
        return num_tokens

    def _holds(self, num_tokens: int, end: int) -> bool:
        """Whether so many tokens make the first `end` characters."""
        text, last = self._decoded(num_tokens), end - 1 - self._offset
        return len(text) > last and (text[last] != _INCOMPLETE or self._text[end - 1] == _INCOMPLETE)

    def _skip_to(self, num_tokens: int) -> None:
        num_characters = self._offset + len(self._decoded(num_tokens))
        self._num_known, self._begin = num_tokens, max(0, num_tokens - _CONTEXT)
        self._offset = num_characters - len(self._decoded(num_tokens))

    def _decoded(self, num_tokens: int) -> str:
        return self._decode(self._token_ids[self._begin : num_tokens])
