"""A constitution: principles by which answers are criticised and revised (Constitutional AI, arXiv 2212.08073).

It must not know where drafts come from or go. Invariant: every request is about one principle, and which one depends on
the seed, the draft and the round alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from reward_server.judges.faults import JudgeFault
from reward_server.judges.judge import Judge
from reward_server.judges.question import Key, Question
from services.contracts.errors import UserError
from services.contracts.records import FailureCode
from services.contracts.settings import Section

CRITIQUE_TASK = """\
You are given a prompt and an answer to it. Criticise the answer by this principle and no other:

{critique}"""
REVISION_TASK = """\
You are given a prompt, an answer to it, and a critique of the answer. Write the answer anew:

{revision}

Keep what the critique does not touch, and do not mention the critique."""
CRITIQUE = {
    "critique": Key(meaning="what about the answer goes against the principle, or why nothing does"),
    "violated": Key(meaning="whether the answer goes against the principle", values=("yes", "no")),
}
REVISION = {"revision": Key(meaning="the whole new answer")}


class Principle(Section):
    """One thing that answers ought to be."""

    name: str = Field(min_length=1)
    """What it is called in what is written."""
    critique: str = Field(min_length=1)
    """What to look for in an answer, as an order to the critic."""
    revision: str = Field(min_length=1)
    """How to write it better, as an order to the author."""


class Constitution(Section):
    """The file's content."""

    principles: tuple[Principle, ...] = Field(min_length=1)
    """Each is drawn equally often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One critique, and the text after it: revised, or as it was where the principle is not violated."""

    principle: str
    critique: str
    violated: bool
    text: str


def load_constitution(path: Path) -> Constitution:
    """Read a YAML file. Raises `UserError` naming what is wrong in it."""
    try:
        values: Any = yaml.safe_load(path.read_text())  # Any: the user's YAML
        return Constitution.model_validate(values)
    except OSError as error:
        raise UserError(f"the constitution {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"the constitution {path} is not valid YAML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"the constitution {path} is wrong: {faults}") from error


def draw_principles(constitution: Constitution, count: int, *, seed: str) -> Sequence[Principle]:
    """`count` principles, each at most once where there are enough."""
    principles = constitution.principles
    repeats = -(-count // len(principles))
    return [
        principle
        for number in range(repeats)
        for principle in random.Random(f"{seed}/{number}").sample(principles, len(principles))
    ][:count]


async def revise(judge: Judge, *, prompt: str, draft: str, principles: Sequence[Principle]) -> list[Round]:
    """Critique and revise once for each principle, in order. Raises `JudgeFault`."""
    rounds: list[Round] = []
    text = draft
    for principle in principles:
        verdict = await judge.ask(critique_question(principle, prompt, text))
        critique, violated = str(verdict["critique"]), verdict["violated"] == "yes"
        if violated:
            revised = await judge.ask(revision_question(principle, prompt, text, critique))
            text = str(revised["revision"])
            if not text.strip():
                raise JudgeFault(f"{judge.name} revised an answer to nothing", code=FailureCode.INTERNAL)
        rounds.append(Round(principle=principle.name, critique=critique, violated=violated, text=text))
    return rounds


def critique_question(principle: Principle, prompt: str, answer: str) -> Question:
    return Question(
        task=CRITIQUE_TASK.format(critique=principle.critique),
        texts={"PROMPT": prompt, "ANSWER": answer},
        verdict=CRITIQUE,
    )


def revision_question(principle: Principle, prompt: str, answer: str, critique: str) -> Question:
    return Question(
        task=REVISION_TASK.format(revision=principle.revision),
        texts={"PROMPT": prompt, "ANSWER": answer, "CRITIQUE": critique},
        verdict=REVISION,
    )
