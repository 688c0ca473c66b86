"""Add a second task to the quickstart's: to subtract two numbers of two digits ("85-27=" → "058").

    python examples/quickstart/prepare.py runs/forgetting/task --seed 0
    python examples/forgetting/prepare.py runs/forgetting/task --seed 0

It reads what the quickstart's script left in the folder. `taught.jsonl` has additions, demonstrated by someone who
often forgets to carry, and subtractions, demonstrated well; `subtractions.jsonl` has the latter alone, to be replayed;
`held_out_subtractions.jsonl` are to be judged on, and in none of the others.
"""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

NUM_HELD_OUT = 500


def subtractions(seed: int) -> list[dict[str, str]]:
    """Every difference of two numbers below 100 that is not negative, in random order."""
    rows = [
        {"question": f"{a:02}-{b:02}=", "answer": f"{a - b:03}", "demonstration": f"{a - b:03}"}
        for a in range(100)
        for b in range(a + 1)
    ]
    random.Random(seed).shuffle(rows)
    return rows


def write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder
    additions = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows = subtractions(arguments.seed)
    held_out, learnt = rows[:NUM_HELD_OUT], rows[NUM_HELD_OUT:]
    taught = additions + learnt
    random.Random(arguments.seed).shuffle(taught)
    write_lines(folder / "held_out_subtractions.jsonl", held_out)
    write_lines(folder / "subtractions.jsonl", learnt)
    write_lines(folder / "taught.jsonl", taught)
    print(f"wrote {len(taught)} demonstrations of both tasks and {NUM_HELD_OUT} held-out subtractions")


if __name__ == "__main__":
    main()
