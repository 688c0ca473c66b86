"""What leaves the learner: packed weights with their canary, and a folder that transformers loads."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppo_learner.config import LearnerConfig
from ppo_learner.publishing import default_canary
from services.transport.transports import TRANSPORTS
from services.transport.weights import unpack
from tests.ppo_learner.builders import random_groups, start_rank, weights_of

VALUE_HEAD = LearnerConfig(critic="value_head", lr=1e-3, critic_lr=1e-3)
CRITIC = LearnerConfig(lr=1e-3, critic_lr=1e-3)


@pytest.mark.parametrize("config", [VALUE_HEAD, CRITIC], ids=["value_head", "critic"])
@pytest.mark.parametrize("model", ["tiny_model", "untied_model"])
def test_a_publication_is_the_language_model_under_its_own_names(
    config: LearnerConfig, model: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)
    rank = start_rank(config, folder, temperature=0.7)
    rank.step(random_groups(0))
    publication = rank.publish(7)
    trained = weights_of(rank)
    assert publication and publication.manifest.version == 7
    buckets = TRANSPORTS["disk"]().fetch(publication, timeout_s=5)
    sent = dict(unpack(publication.manifest, buckets))
    expected = AutoModelForCausalLM.from_pretrained(folder)
    assert sent.keys() == dict(expected.named_parameters()).keys()
    for name, tensor in sent.items():
        assert torch.equal(tensor, trained[f"policy.language_model.{name}"])
    # Loaded elsewhere, the weights must give the canary's logprobs at temperature 1, whatever was sampled with.
    expected.load_state_dict({name: tensor.clone() for name, tensor in sent.items()}, strict=False)
    expected.tie_weights()
    canary = publication.manifest.canary
    for sequence, logprobs in zip(canary.sequences, canary.logprobs, strict=True):
        ids = torch.tensor([sequence])
        table = torch.log_softmax(expected(ids).logits[0, :-1].float(), dim=-1)
        found = table.gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), found.detach(), rtol=0, atol=1e-5)
    rank.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_sent_in_the_models_number_format(dtype, tiny_model: Path) -> None:
    rank = start_rank(LearnerConfig(algorithm="grpo"), tiny_model, dtype=dtype)
    publication = rank.publish(0)
    rank.close()
    assert publication and {entry.dtype for entry in publication.manifest.tensors} == {dtype}


def test_an_older_publication_stays_readable_beside_the_next(tiny_model: Path) -> None:
    rank = start_rank(LearnerConfig(algorithm="grpo"), tiny_model)
    first, _ = rank.publish(0), rank.publish(1)
    assert first and TRANSPORTS["disk"]().fetch(first, timeout_s=5)
    rank.close()


def test_files_of_weights_lie_in_the_folder_that_was_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    rank = start_rank(LearnerConfig(algorithm="grpo"), tiny_model, weights_folder=tmp_path)
    publication = rank.publish(0)
    assert publication and all(tmp_path in Path(str(location)).parents for location in publication.locations)
    rank.close()


@pytest.mark.parametrize("model", ["tiny_model", "untied_model"])
def test_an_export_loads_in_transformers_with_equal_logits(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rank = start_rank(VALUE_HEAD, request.getfixturevalue(model))
    rank.step(random_groups(0))
    rank.export(tmp_path)
    ids = torch.arange(2, 30)[None]
    expected = rank._networks.language_model.eval()(ids).logits
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, expected)
    assert (tmp_path / "model.safetensors").exists()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer.encode("1+1=2")) == "1+1=2"
    rank.close()


def test_the_default_canary_is_the_same_every_time_and_within_the_vocabulary() -> None:
    assert default_canary(100) == default_canary(100)
    assert default_canary(100) != default_canary(101)
    assert max(max(sequence) for sequence in default_canary(10)) < 10
