"""What a supervised task is: which questions its examples put to a network, and what is learnt from the answers.

It must not know how steps are made, nor any one task. Invariant: sums over parts, divided by `num_terms`, are means
over all examples, so no split of them changes what is learnt.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ppo_learner.engine import Engine
from ppo_learner.ranks import Ranks
from services.contracts.settings import ModelConfig

Part = tuple[int, ...]
"""Numbers of the examples that go through the network at once."""


class Answer(NamedTuple):
    """What a network says of a part.

    Attributes:
        values: (n,).
        places: (n,) which of all answers these are.
        routing: (2, L, E) what its routers did with the part, as `moe` has it; None where it has no experts.
    """

    values: Tensor
    places: Tensor
    routing: Tensor | None = None


class Questions(Protocol):
    """What goes through the network.

    Attributes:
        num_answers: numbers that the network gives all examples.
    """

    num_answers: int

    def plan(self, *, max_tokens: int, num_ranks: int) -> list[list[Part]]:
        """For each rank its parts, the same number for each."""
        ...

    def answer(self, network: Engine, part: Part, device: torch.device) -> Answer:
        """What the network says of a part."""
        ...


class Work(Questions, Protocol):
    """The examples of one call, and what is learnt from the answers.

    Attributes:
        num_tokens: all tokens of all sequences.
        num_terms: what sums over the examples are divided by.
    """

    num_tokens: int
    num_terms: int

    def prepare(self, answers_of: Callable[[Questions], Tensor]) -> None:
        """Called once before `sums`, without gradient: to ask what no part of the examples tells by itself.

        Args:
            answers_of: all answers of a network as it is, on the CPU; a collective.
        """

    def sums(self, values: Tensor, part: Part) -> Tensor:
        """(M,) sums of the task's metrics over a part, of which it has these answers; the first is the loss and carries
        the gradient."""
        ...


class Task(Protocol):
    """What is learnt. Made with the sections `learner` and `model`, the same on every rank, and this rank's place."""

    def __init__(self, learner: Any, model: ModelConfig, ranks: Ranks) -> None: ...  # Any: the task's own section

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def metrics(self) -> Sequence[str]:
        """(M,) names of what a step measures, the loss first."""
        ...

    @property
    def router_loss_coefficient(self) -> float:
        """What the balance loss of its experts counts beside the first of them."""
        ...

    def lay_out(self, network: Engine) -> None:
        """Decide how sequences go through the network, sharded by now. Every rank calls it, before any work.

        Raises:
            UserError: they are to go as it does not take them.
        """
        ...

    def work(self, examples: Sequence[Any]) -> Work:  # Any: the task's own examples
        """The examples of one call. Raises `UserError` when there is nothing to learn."""
        ...

    def export(self, network: Engine, ranks: Ranks, folder: Path) -> None:
        """Write the network in Hugging Face format. Every rank calls it."""
        ...
