"""Two ranks that share every sequence: the numbers and gradients of one that has it whole, and refusal of what differs.

Training with it is compared in `test_ranks` and `test_preference_training`. The two ranks are real processes that live
through all families.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from transformers import LlamaConfig

from ppo_learner.batching import MicroBatch, batch_rollouts, collate
from ppo_learner.config import LearnerConfig
from ppo_learner.engine import leave, prepare_deepspeed
from ppo_learner.models import Critic, Policy
from ppo_learner.ranks import Ranks, join
from ppo_learner.reward_config import RewardModelConfig
from ppo_learner.sequence_parallel import SequenceParallel, SharedRow
from ppo_learner.sequence_shapes import unshareable
from ppo_learner.supervised_config import SupervisedConfig
from services.contracts.errors import UserError
from services.transport.ports import free_port
from tests.ppo_learner.builders import make_group, random_groups, run_in_processes, start_rank
from tests.ppo_learner.test_packing import CPU, family, write_state_space_model
from tests.tiny import TINY_EXPERTS, tiny_model

WINDOW = {"sliding_window": 5}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": WINDOW,
    "Gemma2": WINDOW,
    "Olmo2": {},
    "Granite": {},
    "Cohere": {},
    "Mixtral": TINY_EXPERTS,
    "Qwen3Moe": TINY_EXPERTS | {"num_experts": 4, "moe_intermediate_size": 24},
}


def outcome(network: torch.nn.Module, batch: MicroBatch) -> dict[str, torch.Tensor]:
    """The answers, and the gradient of a weighted sum of them."""
    network.zero_grad()
    said = network(batch)
    answers = said if isinstance(said, torch.Tensor) else said.logprobs
    (answers * torch.linspace(-1, 1, len(answers))).sum().backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    return {"answers": answers.detach(), **gradients}


def furthest(network: torch.nn.Module, sequences: SequenceParallel, batch: MicroBatch) -> float:
    """The largest difference between what the ranks make of parts and what one makes of all, over the largest number
    of its tensor; where that is all rounding, over a tenth of the largest gradient."""
    with sequences.apart():
        whole = {name: value.clone() for name, value in outcome(network, batch).items()}
    shared = outcome(network, batch)
    assert shared.keys() == whole.keys()
    for name in sorted(shared.keys() - {"answers"}):
        distributed.all_reduce(shared[name])
    sizes = {name: float(value.abs().max()) for name, value in whole.items()}
    least = max(size for name, size in sizes.items() if name != "answers") / 10
    return max(float((shared[name] - whole[name]).abs().max()) / max(size, least) for name, size in sizes.items())


def measure(rank: int, port: int, folder: Path) -> None:
    """Leave for each family and layout the largest difference in `folder`, what is refused, and their deadline."""
    torch.set_num_threads(1)
    prepare_deepspeed()
    ranks = join(rank=rank, world_size=2, master_address="127.0.0.1", master_port=port, timeout_s=60.0, num_sharing=2)
    assert ranks.sharing
    sequences = SequenceParallel(ranks, ranks.sharing, "sdpa")
    of_one_token = batch_rollouts([make_group([[0, 1], [0, 1]], [0.0, 1.0])])
    found = {}
    for packed in (False, True):
        batch = batch_rollouts(random_groups(0))
        batches = {
            "all": collate(batch, range(len(batch.lengths)), CPU, packed=packed),
            "one": collate(batch, [0], CPU, packed=packed),
            "predicted_by_the_first_rank": collate(of_one_token, [0, 1], CPU, packed=packed),
        }
        for name, changes in FAMILIES.items():
            policy = Policy(family(name, **changes), temperature=1.0, sequences=sequences)
            for kind, micro_batch in batches.items():
                found[name, kind, packed] = furthest(policy, sequences, micro_batch)
        critic = Critic(tiny_model().model, sequences=sequences)
        torch.nn.init.normal_(critic.value_head.weight)
        found["critic", "all", packed] = furthest(critic, sequences, batches["all"])
    timeout_s = ranks.sharing._get_backend(CPU).options._timeout.total_seconds()
    leave()
    torch.save((found, refusal(rank, folder), timeout_s), folder / f"found_{rank}.pt")


def refusal(rank: int, folder: Path) -> str:
    """What a learner says to a network that makes something else of parts."""
    config = LearnerConfig(algorithm="grpo", num_ranks=2, sequence_parallel=2)
    place = {"rank": rank, "world_size": 2, "port": int((folder / "port").read_text())}
    with pytest.raises(UserError) as refused:
        start_rank(config, folder / "state_space", **place)
    return str(refused.value)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("sequence_parallel")
    write_state_space_model(folder / "state_space")
    (folder / "port").write_text(str(free_port("127.0.0.1")))
    port = free_port("127.0.0.1")
    run_in_processes(measure, [(rank, port, folder) for rank in range(2)], deadline_s=200)
    return [torch.load(folder / f"found_{rank}.pt") for rank in range(2)]


def test_ranks_that_share_sequences_say_and_learn_what_one_does_in_every_family(measured: Any) -> None:
    for found, *_ in measured:
        assert len(found) == 2 * (3 * len(FAMILIES) + 1)
        assert {case: error for case, error in found.items() if not error < 2e-5} == {}


def test_a_network_that_makes_something_else_of_parts_is_refused(measured: Any) -> None:
    for _, said, _ in measured:
        assert "logprobs of shared sequences are off by" in said and "learner.sequence_parallel" in said


def test_ranks_that_share_sequences_wait_for_each_other_as_long_as_all_ranks_do(measured: Any) -> None:
    assert [timeout_s for *_, timeout_s in measured] == [60.0, 60.0]


def test_a_token_sees_its_own_sequence_within_its_window() -> None:
    row = SharedRow(group=None, position_ids=torch.tensor([[0, 1, 2, 0, 1]]), packed=True, bounds={})  # type: ignore[arg-type]  # not asked
    mask = row.mask(2)
    assert mask is not None
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_shapes_that_cannot_be_shared_are_told_from_the_configuration() -> None:
    shape = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}
    assert unshareable(LlamaConfig(**shape), 2) is None
    assert unshareable(LlamaConfig(**shape), 4) is None  # Keys and values are copied.
    assert "its 8 heads, and 2 of keys, cannot be shared out among 3 ranks" in str(unshareable(LlamaConfig(**shape), 3))
    rotary = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert "rotary embedding (dynamic)" in str(unshareable(LlamaConfig(**shape, rope_parameters=rotary), 2))
    chunked = LlamaConfig(**shape)
    chunked.layer_types = ["chunked_attention", "full_attention"]
    assert "within chunks" in str(unshareable(chunked, 2))


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (LearnerConfig, {"num_ranks": 3, "sequence_parallel": 2}, "must divide num_ranks 3"),
        (LearnerConfig, {"num_ranks": 2, "sequence_parallel": 2, "attention": "eager"}, "use sdpa or flash_attention"),
        (RewardModelConfig, {"num_ranks": 2, "sequence_parallel": 2}, "a reward model reads whole sequences"),
        (
            SupervisedConfig,
            {"num_ranks": 2, "sequence_parallel": 2, "teacher": {"path": "teacher"}},
            "does not go with a teacher",
        ),
        (SupervisedConfig, {"packing": "on", "teacher": {"path": "teacher"}}, "packing: on does not go with a teacher"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**settings)


def test_shares_of_several_ranks_are_counted_once() -> None:
    places = [Ranks(rank=rank, world_size=4, device=CPU, num_sharing=2) for rank in range(4)]
    assert [(place.share, place.num_shares) for place in places] == [(0, 2), (0, 2), (1, 2), (1, 2)]
