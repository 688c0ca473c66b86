"""Every algorithm is whole, and the document says what the code does."""

import re
from pathlib import Path

import yaml

from ppo_learner.advantages import ADVANTAGES
from ppo_learner.aggregation import AGGREGATIONS
from ppo_learner.algorithms import ALGORITHMS
from ppo_learner.config import LearnerConfig
from ppo_learner.losses import POLICY_LOSSES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()


def rows(first_head: str) -> list[list[str]]:
    """The cells of the rows below a table's head, which begins with `first_head`."""
    body = re.search(rf"^\| {first_head} \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", DOCUMENT, re.MULTILINE)
    assert body
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body[1].splitlines()]


def written(settings: dict[str, object]) -> str:
    return ", ".join(f"`{yaml.safe_dump({key: value}).strip()}`" for key, value in settings.items()) or "–"


def test_the_table_of_algorithms_is_what_the_code_has() -> None:
    expected = [
        [
            f"`{name}`",
            f"`{algorithm.advantage}`",
            f"`{algorithm.loss}`",
            f"`{LearnerConfig(algorithm=name).loss_aggregation}`",
            "yes" if algorithm.needs_critic else "no",
            written(dict(algorithm.settings)),
        ]
        for name, algorithm in ALGORITHMS.items()
    ]
    table = rows("algorithm")
    assert [row[:6] for row in table] == expected
    assert all(re.search(r"19|20\d\d|the same", row[6]) for row in table), "each has a source"


def test_the_tables_of_parts_are_what_the_code_has() -> None:
    assert [row[0] for row in rows("advantage")] == [f"`{name}`" for name in ADVANTAGES]
    assert [row[0] for row in rows("loss")] == [f"`{name}`" for name in POLICY_LOSSES]
    assert all(f"`{name}` 1/" in DOCUMENT for name in AGGREGATIONS)


def test_the_document_names_settings_that_exist() -> None:
    named = set(re.findall(r"`(\w+_\w+)`", DOCUMENT))
    known = {*LearnerConfig.model_fields, *ALGORITHMS, *ADVANTAGES, *POLICY_LOSSES, *AGGREGATIONS, "updates_left_out"}
    assert named <= known


def test_the_help_names_every_algorithm() -> None:
    description = LearnerConfig.model_fields["algorithm"].description or ""
    assert [name for name in ALGORITHMS if not re.search(rf"\b{name}\b", description)] == []
