"""What a policy or a data set says reaches the terminal as text, and can do nothing to it."""

from array import array

import pytest

from rollout_workers.prompts import PromptSet
from services.cli import plan, train
from services.contracts.records import Prompt
from services.control.config import RunConfig
from services.control.evaluation import Evaluation, GradedCompletion
from services.control.preflight import RunInputs

HOSTILE = "\x1b]0;title\x07\x1b[2J[red]gone"


def test_completions_before_and_after_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    graded = GradedCompletion(prompt=HOSTILE, completion=HOSTILE, reward=0.0, correct=False)
    train._print_completions(Evaluation(completions=[graded]), Evaluation(completions=[graded]))
    shown = capsys.readouterr().out
    assert "[2J" in shown and not {"\x1b", "\x07"} & set(shown)


def test_neither_do_the_first_prompt_and_its_reference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompt = Prompt(id="0-0", text=HOSTILE, token_ids=array("i", [1]), reference={"answer": HOSTILE})
    inputs = RunInputs(prompts=PromptSet(prompts=(prompt,)), max_length=100, tokenizer=None)
    sections = {"model": {"path": "m"}, "data": {"prompts": "d"}, "reward": {"addresses": ["127.0.0.1:1"]}}
    plan.print_plan(RunConfig.model_validate(sections), inputs)
    shown = capsys.readouterr().out
    assert "[red]gone" in shown and not {"\x1b", "\x07"} & set(shown)
