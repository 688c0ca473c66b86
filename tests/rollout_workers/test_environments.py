"""Environments: the calculator, whatever is written for it to work out, and how one of a user's own is found."""

import time
from pathlib import Path

import pytest

from rollout_workers.environment_config import EnvironmentConfig
from rollout_workers.environments import load_environment
from rollout_workers.environments.calculator import calculator
from services.contracts.dialogue import Dialogue
from services.contracts.errors import UserError
from services.contracts.records import Message

OWN = '''
"""Environments of a user's own."""
from helper import MOST

def respond(dialogue, word="more"):
    return word if dialogue.number < MOST else None

async def later(dialogue):
    return None

number = 3
'''


def said(text: str) -> Dialogue:
    return Dialogue(prompt="how many?", turns=(Message(role="assistant", content=text),))


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*34", "408"),
        ("2 + 3 * -4", "-10"),
        ("(1,000 - 1) / 3", "333"),
        ("1/3", "0.333333"),
        ("0.1 + 0.2", "0.3"),
        ("2^10", "1024"),
        ("2**-1", "0.5"),
        ("1/0", "error: division by zero"),
        ("2 +", "error: not an arithmetic expression"),
        ("", "error: not an arithmetic expression"),
        ("True + 1", "error: only numbers, + - * / ^ and brackets are understood"),
        ("__import__('os').getpid()", "error: only numbers, + - * / ^ and brackets are understood"),
        ("9^9^9", "error: an exponent must be an integer from -64 to 64"),
        ("(9^64)^64", "error: too large"),
        ("(2^63)^64 / 3", "error: too large"),
        ("0^-1", "error: division by zero"),
        ("2^0.5", "error: an exponent must be an integer from -64 to 64"),
        ("1e999999999", "error: too large"),
        ("1" * 201, "error: longer than 200 characters"),
    ],
)
def test_the_calculator_answers_exactly_or_says_why_not(expression: str, result: str) -> None:
    begun = time.monotonic()
    assert calculator(said(f"so <calculator>{expression}</calculator>")) == f"<result>{result}</result>"
    assert time.monotonic() - begun < 1.0


def test_deep_brackets_are_answered_too() -> None:
    answer = calculator(said(f"<calculator>{'(' * 95}1{')' * 95}</calculator>"))
    assert answer in ("<result>1</result>", "<result>error: not an arithmetic expression</result>")


def test_the_last_call_counts_and_without_one_the_dialogue_ends() -> None:
    assert calculator(said("<calculator>1+1</calculator> no, <calculator>2+2</calculator>")) == "<result>4</result>"
    assert calculator(said("<calculator><calculator>3+3</calculator>")) == "<result>6</result>"
    assert calculator(said("it is 4")) is None
    assert calculator(said("<calculator>1/3</calculator>"), digits=2) == "<result>0.33</result>"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("MOST = 2\n")
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_an_environment_of_ones_own_is_a_file_and_a_name(own: Path) -> None:
    respond = load_environment(EnvironmentConfig(name=f"{own}:respond", options={"word": "again"}))
    one, two = said("a"), said("a")
    two = Dialogue(prompt="", turns=(*one.turns, Message(role="tool", content="again"), *two.turns))
    assert (respond(one), respond(two)) == ("again", None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "calculater",
            {},
            r"no environment 'calculater'; built in are calculator, python; your own is given as my_env",
        ),
        ("nowhere.py:respond", {}, r"there is no environment file nowhere.py"),
        ("{own}:replies", {}, r"has no 'replies', which environment .* names"),
        ("{own}:number", {}, r"is 3; it must be a plain function of a dialogue"),
        ("{own}:later", {}, r"must be a plain function of a dialogue, which may block"),
        ("{own}:respond", {"wrod": "x"}, r"options of .* do not fit it: .*'wrod'; .*respond\(dialogue, word='more'\)"),
        ("calculator", {"dialogue": 1}, r"options of 'calculator' do not fit it: multiple values"),
    ],
)
def test_what_is_wrong_with_an_environment_is_told(
    own: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_environment(EnvironmentConfig(name=name.format(own=own), options=options))
