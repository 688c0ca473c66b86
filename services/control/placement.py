"""What processes need of their machines, and whether given machines have it: arithmetic and words.

It must not know Ray. Invariant: what does not fit is told completely, with what is needed, by whom, and what there is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

RESOURCES = ("CPU", "GPU")

Resources = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What one process needs of its machine."""

    name: str
    cpus: float
    gpus: float = 0.0

    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def total(parts: Iterable[Resources]) -> dict[str, float]:
    listed = list(parts)
    return {name: sum(part.get(name, 0.0) for part in listed) for name in RESOURCES}


def in_words(resources: Resources) -> str:
    """`4 CPU, 1 GPU`; what there is none of is left out, unless there is nothing."""
    return ", ".join(f"{resources[name]:g} {name}" for name in RESOURCES if resources.get(name)) or "0 CPU"


def who_needs_what(demands: Sequence[Demand]) -> str:
    """`learner rank 0: 4 CPU; rollout worker 0 to rollout worker 3: 1 CPU, 1 GPU each`."""
    words = []
    for bundle, alike in groupby(demands, key=Demand.bundle):
        names = [demand.name for demand in alike]
        words.append(
            f"{names[0]} to {names[-1]}: {in_words(bundle)} each" if names[1:] else f"{names[0]}: {in_words(bundle)}"
        )
    return "; ".join(words)


def unplaced(demands: Sequence[Demand], machines: Sequence[Resources]) -> list[Demand]:
    """The demands that find no machine when each, the largest first, takes the fullest machine that still has room."""
    free = [total([machine]) for machine in machines]
    left_over = []
    for demand in sorted(demands, key=lambda demand: (demand.gpus, demand.cpus), reverse=True):
        needs = total([demand.bundle()])
        fitting = [machine for machine in free if all(machine[name] >= needs[name] for name in RESOURCES)]
        if not fitting:
            left_over.append(demand)
            continue
        fullest = min(fitting, key=lambda machine: (machine["GPU"], machine["CPU"]))
        fullest.update({name: fullest[name] - needs[name] for name in RESOURCES})
    return [demand for demand in demands if demand in left_over]


def shortage(demands: Sequence[Demand], machines: Sequence[Resources]) -> str | None:
    """What is missing for all `demands` to run on `machines` at once, in words; None when nothing is."""
    left_over = unplaced(demands, machines)
    if not left_over:
        return None
    needs, has = total(demand.bundle() for demand in demands), total(machines)
    each = f" on {len(machines)} machines ({'; '.join(map(in_words, machines))})" if machines[1:] else ""
    return (
        f"the run needs {in_words(needs)}: {who_needs_what(demands)}; "
        f"the cluster has {has['CPU']:g} CPU, {has['GPU']:g} GPU{each}, which leaves no room for "
        f"{', '.join(demand.name for demand in left_over)}; "
        "lower rollout.num_workers, learner.num_ranks or the cores and GPUs of each, or add machines"
    )
