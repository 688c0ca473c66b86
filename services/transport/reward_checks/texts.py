"""Checks of the texts that a policy may write: nothing, very much, every script, and characters that steer terminals.

They must not judge scores. Invariant: each text is valid Unicode without lone surrogates, as the client sends no other.
"""

from collections.abc import Mapping
from dataclasses import replace

import grpc

from services.transport.reward_checks.session import Session, Status, Violation, in_words, outcome_in_words

LONG_COMPLETION_CHARACTERS = 1_000_000
TOO_LARGE_CHARACTERS = 20_000_000
UNICODE: Mapping[str, str] = {
    "astral characters": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🚣",
    "joined emoji": "🚣🏽‍♀️ 👩‍👩‍👧‍👦 🇳🇴",
    "combining characters": "e\u0301 a\u0308\u0323 " + "o" + "\u0336" * 64,
    "right-to-left text": "עברית \u202eאבג\u202c العربية",
    "East Asian scripts": "日本語 한국어 ไทย",
    "noncharacters and the highest code point": "\ufeff\ufffe\uffff\U0010ffff\ue000",
}
CONTROL: Mapping[str, str] = {
    "NUL": "before\u0000after",
    "a text of NUL alone": "\u0000",
    "terminal escapes": "\u001b[2J\u001b]0;title\u0007\u009b31m",
    "every control character": "".join(map(chr, (*range(32), *range(127, 160)))),
    "all kinds of line ends": "a\r\nb\nc\rd\u2028e\u2029f\u0085g\u000bh\u000c",
    "white space only": " \t\u00a0\u3000\u200b",
}
CODE_POINTS = "steps are counted in Unicode code points, not in bytes or UTF-16 units"


async def takes_empty_completion(session: Session) -> str:
    return outcome_in_words((await session.score(session.samples([""])))[0])


async def takes_long_completion(session: Session) -> str:
    text = "long " * (LONG_COMPLETION_CHARACTERS // 5)
    try:
        (outcome,) = await session.score(session.samples([text]))
    except grpc.aio.AioRpcError as error:
        what = f"a completion of {LONG_COMPLETION_CHARACTERS:,} characters"
        if error.code() is Status.RESOURCE_EXHAUSTED:
            raise Violation(f"{what} is refused as too large ({error.details()}); accept 4 MiB at the least") from error
        raise Violation(f"{what}: {in_words(error, session.timeout_s)}") from error
    return outcome_in_words(outcome)


async def refuses_what_is_too_large(session: Session) -> str:
    what = f"a request of {TOO_LARGE_CHARACTERS / 1e6:g} MB"
    try:
        await session.score(session.samples(["long " * (TOO_LARGE_CHARACTERS // 5)]))
    except grpc.aio.AioRpcError as error:
        if error.code() is not Status.RESOURCE_EXHAUSTED:
            raise Violation(
                f"{what}: {in_words(error, session.timeout_s)}; refuse it with RESOURCE_EXHAUSTED"
            ) from error
        await session.score(session.samples(["The answer is 42."]))
        return f"{what} is refused with RESOURCE_EXHAUSTED, and the service goes on"
    return f"{what} is answered"


async def takes_unicode(session: Session) -> str:
    return await _takes_each(session, UNICODE)


async def takes_control_characters(session: Session) -> str:
    return await _takes_each(session, CONTROL)


async def _takes_each(session: Session, texts: Mapping[str, str]) -> str:
    """Each text alone, so that it is known which one is not taken."""
    for name, text in texts.items():
        (sample,) = session.samples([text])
        try:
            await session.score([replace(sample, prompt=text)])
        except Violation as violation:
            hint = f"; {CODE_POINTS}" if "a step covers" in str(violation) else ""
            raise Violation(f"{name}: {violation}{hint}") from violation
        except grpc.aio.AioRpcError as error:
            raise Violation(f"{name}: {in_words(error, session.timeout_s)}") from error
    return f"takes {', '.join(texts)}"
