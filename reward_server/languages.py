"""Which language a stretch of text is in, by its script and its commonest words.

A script that one language owns decides alone; languages that share a script are told apart by function words. It must
not know of rewards. Invariants: the cost is linear in the text's length; a stretch without a word of evidence is
of no language rather than of a guessed one.
"""

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import regex

from reward_server.function_words import FUNCTION_WORDS

# Vowel signs of many scripts are marks, not letters.
WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*(?:['’]\p{L}[\p{L}\p{M}]*)?")

SHARED_SCRIPTS: Mapping[str, Mapping[str, frozenset[str]]] = {
    script: {language: frozenset(words.split()) for language, words in languages.items()}
    for script, languages in FUNCTION_WORDS.items()
}
# The scripts of languages that share theirs with no other one here, but for the Chinese characters.
OWN_SCRIPTS: Mapping[str, frozenset[str]] = {
    "bn": frozenset({"BENGALI"}),
    "el": frozenset({"GREEK"}),
    "he": frozenset({"HEBREW"}),
    "ja": frozenset({"HIRAGANA", "KATAKANA", "CJK"}),
    "ko": frozenset({"HANGUL"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({"CJK"}),
}
# Above this share of kana a text in Chinese characters is Japanese.
KANA_SHARE = 0.15
SCRIPTS: Mapping[str, frozenset[str]] = {
    **OWN_SCRIPTS,
    **{language: frozenset({script}) for script, languages in SHARED_SCRIPTS.items() for language in languages},
}
LANGUAGES = tuple(sorted(SCRIPTS))
STRETCH_WORDS = 12


def share_in(language: str, text: str, stretch_words: int = STRETCH_WORDS) -> float:
    """Letters of words that are in `language`, over all letters; 1/2 where there are none."""
    right, total = 0.0, 0
    for words in stretches(text, stretch_words):
        own = [word for word in words if script_of(word[0]) in SCRIPTS[language]]
        found = languages_of(own)
        total += sum(map(len, words))
        right += sum(map(len, own)) * (float(language in found) if found else 0.5)
    return right / total if total else 0.5


def stretches(text: str, num_words: int) -> Iterator[list[str]]:
    """The words of a text, so many at a time; the last stretch takes the rest, as fewer would tell little."""
    words = list(words_of(text))
    last = max(len(words) // num_words - 1, 0) * num_words
    yield from (words[start : start + num_words] for start in range(0, last, num_words))
    yield words[last:]


def words_of(text: str) -> Iterator[str]:
    """The words of a text in lower case; a run of letters that no space divides is one word."""
    return (match.group().lower().replace("’", "'") for match in WORD.finditer(text))


def languages_of(words: Sequence[str]) -> frozenset[str]:
    """The languages that a stretch of text may be in: one, several on a par, or none where nothing tells."""
    scripts = Counter(script_of(letter) for word in words for letter in word)
    if not scripts:
        return frozenset()
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > KANA_SHARE * scripts.total():
        return frozenset({"ja"})
    (script, _), *_ = scripts.most_common(1)
    if script == "CJK":
        return frozenset({"zh"})
    if script not in SHARED_SCRIPTS:
        return frozenset(language for language, own in OWN_SCRIPTS.items() if script in own)
    hits = {language: sum(word in known for word in words) for language, known in SHARED_SCRIPTS[script].items()}
    most = max(hits.values())
    return frozenset(language for language, count in hits.items() if count == most > 0)


@functools.lru_cache(maxsize=4096)
def script_of(letter: str) -> str:
    """The first word of a letter's Unicode name, which is its script's name."""
    return unicodedata.name(letter, "").partition(" ")[0]
