"""Which fenced block of a completion counts."""

import pytest

from services.contracts.fences import last_fenced_block

PROGRAM = "```python\nprint(7)\n```\n"


@pytest.mark.parametrize(
    "text",
    [
        PROGRAM,
        "```\nprint(1)\n```\n" + PROGRAM,
        PROGRAM + "Output:\n```\n7\n```\n",
        PROGRAM + "```json\n{}\n```\n",
        "```add(3,4)``` gives 7.\n" + PROGRAM,
        PROGRAM + "```add(3,4)``` gives 7.\n",
        "```Python title=add.py\nprint(7)\n```\n",
        "````python\nprint(7)\n````\n",
        "```\nprint(7)\n```\n",
        PROGRAM + "```python\ncut",
    ],
)
def test_the_last_block_in_the_language_counts_before_those_without_one(text: str) -> None:
    assert last_fenced_block(text, languages=("python",)) == "print(7)"


@pytest.mark.parametrize("text", ["", "print(7)", "```json\n{}\n```", "```python\nprint(7)"])
def test_a_block_in_another_language_or_cut_off_is_none(text: str) -> None:
    assert last_fenced_block(text, languages=("python",)) is None


def test_a_longer_fence_holds_shorter_ones() -> None:
    assert last_fenced_block("````md\n```\na\n```\n````", languages=("md",)) == "```\na\n```"
