"""Completions that are written down: in the order of the data, and as a judge's job reads them."""

import json
from dataclasses import replace
from pathlib import Path

from services.contracts.records import Message, Sampling
from services.control.candidates import CandidatesConfig, load_pairs
from services.control.sampling import write_completions
from tests.fakes import FakeRollouts, make_prompt


async def test_completions_are_written_in_the_order_of_the_data_and_make_pairs(tmp_path: Path) -> None:
    prompts = [make_prompt(row) for row in range(3)]
    prompts[1] = replace(prompts[1], messages=(Message(role="user", content="Why?"),))
    rollouts = FakeRollouts(delay=lambda row: 3 - row, complete=lambda prompt, index: f"{prompt.row}/{index}")
    sampling = Sampling(num_samples=2, max_completion_tokens=8)

    path = await write_completions(prompts, rollouts=rollouts, sampling=sampling, folder=tmp_path)

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0] == {"prompt": "prompt 0", "completions": ["0/0", "0/1"], "reference": {"answer": "0"}}
    assert rows[1]["prompt"] == [{"role": "user", "content": "Why?"}]
    pairs = load_pairs(CandidatesConfig(rows=str(path), completions_field="completions"), seed=0)
    assert [{pair.first, pair.second} for pair in pairs] == [{f"{row}/0", f"{row}/1"} for row in range(3)]
