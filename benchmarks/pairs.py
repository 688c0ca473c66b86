"""Ratios measured fairly: the two sides in turn (A B A B …), median and spread over the pairs, as JSON and as a table.

It must not know what is measured. Invariant: no number is printed without its spread and the machine it comes from.
"""

import json
import os
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Ours over theirs, for each pair; above 1 ours is ahead."""

    name: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    aim: float

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def row(self) -> str:
        ratios = sorted(self.ratios)
        return (
            f"{self.name:46} {median(ratios):6.3f}  ({ratios[0]:.3f}–{ratios[-1]:.3f}, {len(ratios)} pairs, aim "
            f"{self.aim:g})   {median(self.ours):12,.0f} against {median(self.theirs):12,.0f} {self.unit}"
        )


async def in_turn(
    ours: Callable[[], Awaitable[float]], theirs: Callable[[], Awaitable[float]], *, num_pairs: int
) -> tuple[list[float], list[float]]:
    """Measure both sides `num_pairs` times, after one run of each that is not counted."""
    await ours(), await theirs()
    measured: tuple[list[float], list[float]] = ([], [])
    for _ in range(num_pairs):
        measured[0].append(await ours())
        measured[1].append(await theirs())
    return measured


def report(ratios: Sequence[Ratio], *, output: Path | None, facts: Mapping[str, float] | None = None) -> None:
    """Print the table, and below it numbers that are no ratios; write the JSON to `output`."""
    machine = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    print(f"{machine['machine']}, {machine['cores']} cores; median over pairs (smallest–largest)")
    for ratio in ratios:
        print(ratio.row())
    for name, value in (facts or {}).items():
        print(f"{name:46} {value:6.3f}")
    if output is not None:
        results = [asdict(ratio) | {"ratio": median(ratio.ratios)} for ratio in ratios]
        output.write_text(
            json.dumps({"machine": machine, "results": results, "facts": dict(facts or {})}, indent=2) + "\n"
        )
