"""Programs of a policy in the real sandbox: what it is told of each, and that it can do no harm."""

import threading
from collections.abc import Iterator

import psutil
import pytest

from rollout_workers.environments import python_tool
from rollout_workers.environments.python_tool import python
from services.contracts.dialogue import Dialogue
from services.contracts.errors import UserError
from services.contracts.records import Message
from services.processes.sandbox import LAUNCH


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[None]:
    """A worker keeps its sandbox until it ends; here others come after."""
    try:
        assert run("print('ready')") == "ready"
    except UserError as error:
        pytest.skip(str(error))
    yield
    ended = launchers()
    for launcher in ended:
        launcher.kill()
    assert psutil.wait_procs(ended, timeout=10)[1] == []
    python_tool._started.cache_clear()


def launchers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if LAUNCH in child.cmdline()]


def said(text: str) -> Dialogue:
    return Dialogue(prompt="", turns=(Message(role="assistant", content=text),))


def run(program: str, **options: object) -> str:
    answer = python(said(f"Let me see:\n```python\n{program}\n```\nSo"), **options)  # type: ignore[arg-type]
    assert answer is not None
    return answer.removeprefix("<output>\n").removesuffix("\n</output>")


def test_the_last_program_of_a_turn_is_run() -> None:
    assert python(said("```python\nprint(1)\n```\nno:\n```py\nprint(6 * 7)\n```")) == "<output>\n42\n</output>"


@pytest.mark.parametrize("text", ["The answer is 42.", "```python\nprint(1)", "```sh\nls\n```"])
def test_a_turn_without_a_program_ends_the_dialogue(text: str) -> None:
    assert python(said(text)) is None
    assert python(said(text), require_fence=False) is not None


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("print(1)\n1 / 0", "1\nZeroDivisionError: division by zero (line 2)"),
        ("def f(", "SyntaxError: '(' was never closed"),
        ("import sys\nprint('a')\nsys.exit(3)", "a"),
        ("import torch", "ModuleNotFoundError: No module named 'torch' (line 1)"),
        ("import os; os.abort()", " ended the program"),
        ("x = [0] * 10**9", "MemoryError (line 1)"),
        ("print('x' * 10**7)", "error: the program printed too much"),
    ],
)
def test_a_mistake_is_told(program: str, told: str) -> None:
    assert run(program).endswith(told)


def test_a_program_that_does_not_end_is_told_so_and_leaves_nothing() -> None:
    assert run("while True:\n    pass", wall_s=0.5) == "error: the program was not done after 0.5 s"
    assert [child for launcher in launchers() for child in launcher.children(recursive=True)] == []


@pytest.mark.parametrize(
    "program",
    ["open('/etc/passwd')", "import socket; socket.create_connection(('127.0.0.1', 22), 1)", "open('/usr/x', 'w')"],
)
def test_a_program_reaches_neither_files_nor_network(program: str) -> None:
    assert "Error" in run(program)


def test_a_long_answer_loses_its_middle() -> None:
    assert run("print('a' * 30 + 'b' * 30)", longest=20) == "aaaaaaaaaa\n… 40 characters left out …\nbbbbbbbbbb"


def test_programs_run_side_by_side() -> None:
    answers: list[str] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(run(f"print({n})"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [str(n) for n in range(8)]
