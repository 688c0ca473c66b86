"""Simulates one seed and prints its scenario, its ledger and what is wrong: `python -m tests.simulation 7`."""

import sys
from dataclasses import asdict

from tests.simulation.run import simulate


def main(seed: int) -> int:
    result = simulate(seed)
    print(result.scenario)
    for event in result.events:
        fields = {name: value for name, value in asdict(event).items() if name not in ("seq", "time", "event")}
        print(f"{event.seq:5} {event.event:18}", *(f"{name}={value}" for name, value in fields.items()))
    print("faults:", dict(result.faults))
    print("the processes ended:", *result.endings, sep="\n  ")
    print("wrong:", *(result.wrong or ["nothing"]), sep="\n")
    return bool(result.wrong)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
