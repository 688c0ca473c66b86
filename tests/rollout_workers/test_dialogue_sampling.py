"""Dialogues with the real engine: what is trained is what was sampled, whoever spoke in between."""

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import ray

from rollout_workers.environment_config import EnvironmentConfig
from services.contracts.errors import EnvironmentFailed, UserError
from services.contracts.records import Message, Rollout, RolloutGroup
from services.contracts.settings import ModelConfig
from tests.rollout_workers.conftest import ROLLOUT, HostedWorker
from tests.rollout_workers.weights import largest_error, model_of, order, publish
from tests.tiny import tiny_tokenizer, write_tiny_model

SEED = 1
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}<eos>{% endfor %}assistant "
SPEAKER = '''
"""Answers with how long the policy's turn was, and twice at most."""

def respond(dialogue):
    return f" {len(dialogue.said)} " if dialogue.number < 3 else None

def chat(dialogue):
    return "ok" if dialogue.number < 3 else None

def fail(dialogue):
    raise RuntimeError("the tool broke")
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dialogues")
    (folder / "speaker.py").write_text(SPEAKER)
    return folder


def start(host: Any, folder: Path, function: str, *, template: str | None = None) -> HostedWorker:
    model = write_tiny_model(folder / f"model of {function}")
    if template is not None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(model)
    environment = EnvironmentConfig(name=f"{folder}/speaker.py:{function}", max_attempts=1)
    rollout = ROLLOUT.model_copy(update={"environment": environment})
    ray.get(host.start.remote(function, ModelConfig(path=str(model), dtype="float32"), rollout), timeout=120)
    return HostedWorker(host, function, model)


@pytest.fixture(scope="module")
def speaking(host: Any, folder: Path) -> HostedWorker:
    return start(host, folder, "respond")


def tokens(group: RolloutGroup) -> list[list[int]]:
    return [list(rollout.token_ids) for rollout in group.rollouts]


async def test_logprobs_in_every_turn_are_those_of_the_same_model_in_transformers(speaking: HostedWorker) -> None:
    await speaking.load_weights(publish(speaking, seed=SEED))
    group = await speaking.sample(order(num_samples=8, max_completion_tokens=60, stop=("a", "e", "3")))

    assert max(rollout.num_turns for rollout in group.rollouts) == 3
    for rollout in group.rollouts:
        assert "".join(turn.content for turn in rollout.turns) == rollout.completion
        assert (0 in rollout.loss_mask[3:]) == (rollout.num_turns > 1)
    assert max(largest_error(rollout, model_of(speaking, SEED)) for rollout in group.rollouts) < 1e-5


async def test_a_group_that_is_sampled_again_is_the_same_and_its_first_turns_those_of_a_single_turn(
    speaking: HostedWorker, worker: HostedWorker
) -> None:
    stopped = order(num_samples=4, max_completion_tokens=60, stop=("a", "e", "3"))
    publication = publish(speaking, seed=SEED)  # One for both, as the version goes into the seeds.
    for one in (speaking, worker):
        await one.load_weights(publication)

    group, again, single = [await one.sample(stopped) for one in (speaking, speaking, worker)]

    assert tokens(group) == tokens(again)
    firsts = [rollout.loss_mask.index(0, 3) if 0 in rollout.loss_mask[3:] else None for rollout in group.rollouts]
    assert [ids[:first] for ids, first in zip(tokens(group), firsts, strict=True)] == tokens(single)


async def test_in_a_chat_the_policy_reads_the_answer_as_a_turn_and_no_end_of_turn_twice(
    host: Any, folder: Path
) -> None:
    chatting = start(host, folder, "chat", template=TEMPLATE)
    await chatting.load_weights(publish(chatting, seed=SEED))
    asked = order(num_samples=8, max_completion_tokens=120, stop=("a", "e", "3"))
    chat = replace(asked.prompt, messages=(Message(role="user", content="so"),))
    group = await chatting.sample(replace(asked, prompt=chat))

    assert max(largest_error(rollout, model_of(chatting, SEED)) for rollout in group.rollouts) < 1e-5
    gaps = [gap for rollout in group.rollouts for gap in answers(rollout)]
    assert len(gaps) >= 8
    for before, text in gaps:
        assert text == ("tool ok<eos>assistant " if before == "<eos>" else "<eos>tool ok<eos>assistant ")
    for rollout in group.rollouts:
        roles = [turn.role for turn in rollout.turns]
        assert roles == ["assistant", "tool"] * (rollout.num_turns - 1) + ["assistant"]


def answers(rollout: Rollout) -> list[tuple[str, str]]:
    """The policy's last token before each answer, and the answer."""
    tokens = [tiny_tokenizer().decode([token]) for token in rollout.token_ids[3:]]
    pieces = [
        list(piece) for _, piece in groupby(zip(rollout.loss_mask[3:], tokens, strict=True), lambda pair: pair[0])
    ]
    texts = [[token for _, token in piece] for piece in pieces]
    return [(said[-1], "".join(told)) for said, told in zip(texts[::2], texts[1::2], strict=False)]


async def test_an_environment_that_fails_is_told_to_whoever_ordered_and_the_worker_serves_on(
    host: Any, folder: Path
) -> None:
    failing = start(host, folder, "fail")
    await failing.load_weights(publish(failing, seed=SEED))
    with pytest.raises(EnvironmentFailed, match="RuntimeError: the tool broke"):
        await failing.sample(order(num_samples=2, max_completion_tokens=60, stop=("a", "e", "3")))
    assert await failing.health() >= 0


async def test_a_worker_whose_environment_does_not_load_says_so_before_its_model_is(host: Any, folder: Path) -> None:
    environment = EnvironmentConfig(name=f"{folder}/nothing.py:respond")
    model = ModelConfig(path=str(folder / "no model"))
    with pytest.raises(UserError, match="there is no environment file"):
        rollout = ROLLOUT.model_copy(update={"environment": environment})
        await host.start.remote("nothing", model, rollout)
