"""Sections of configurations that the documents print are taken as they stand."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_server.config import RewardConfig

ROOT = Path(__file__).parents[2]
BLOCKS = [
    pytest.param(block, id=path.name)
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)
    if re.search(r"^[^#\n]*addresses:", block, re.MULTILINE)
]


def sections_with_addresses(block: Any) -> Iterator[dict[str, Any]]:  # Any: YAML
    if isinstance(block, dict) and "addresses" in block:
        yield block
    children = block.values() if isinstance(block, dict) else block if isinstance(block, list) else ()
    for child in children:
        yield from sections_with_addresses(child)


@pytest.mark.parametrize("block", BLOCKS)
def test_servers_are_reached_as_the_documents_say(block: str) -> None:
    sections = list(sections_with_addresses(yaml.safe_load(block)))
    assert sections
    for section in sections:
        RewardConfig.model_validate(section)
