"""Write the games for the example of a dialogue beside the quickstart's model.

    python examples/quickstart/prepare.py runs/dialogue/task --seed 0
    python examples/dialogue/prepare.py runs/dialogue/task --seed 0

`games.jsonl` has one game for each number. `demonstrations.jsonl` shows the form of the game alone: three guesses at
random, with answers that have nothing to do with them.
"""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

NUM_DEMONSTRATIONS = 2000


def random_game(draw: random.Random) -> str:
    """Three guesses with two answers between them, such as "3\\n+5\\n-1\\n"."""
    guesses = [f"{draw.randint(1, 7)}\n" for _ in range(3)]
    return f"{guesses[0]}{draw.choice('+-')}{guesses[1]}{draw.choice('+-')}{guesses[2]}"


def write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    shown = [{"question": "?", "game": random_game(draw)} for _ in range(NUM_DEMONSTRATIONS)]
    write_lines(arguments.folder / "demonstrations.jsonl", shown)
    write_lines(arguments.folder / "games.jsonl", [{"question": "?", "number": number} for number in range(1, 8)])
    print(f"wrote 7 games and {NUM_DEMONSTRATIONS} demonstrations of their form")


if __name__ == "__main__":
    main()
