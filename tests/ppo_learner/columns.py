"""Experience and micro-batches written by hand, for tests of what is made of their columns.

Invariant: sequences hold sampled tokens only, and a micro-batch is of all of them, in the order of the columns.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ppo_learner.batching import Batch, MicroBatch
from ppo_learner.experience import Experience
from ppo_learner.return_moments import ReturnMoments


def logs(*probabilities: float) -> Tensor:
    """(N,) in float64."""
    return tokens(*probabilities).log()


def tokens(*values: float) -> Tensor:
    """(N,) in float64."""
    return torch.tensor(values, dtype=torch.float64)


def columns_of(lengths: Sequence[int], **columns: Any) -> Experience:
    """Fresh tokens of sequences of these lengths; a column that is not given is 0, or None where it may be."""
    zeros = torch.zeros(sum(lengths), dtype=torch.float64)
    given: dict[str, Any] = {
        "batch": Batch(
            token_ids=(),
            positions=(),
            action_offsets=torch.tensor([0, *accumulate(lengths)]),
            learnt=torch.ones(len(lengths), dtype=torch.bool),
        ),
        "advantages": zeros,
        "raw_advantages": zeros,
        "behaviour_logprobs": zeros,
        "staleness": torch.ones_like(zeros, dtype=torch.int64),
        "return_moments": ReturnMoments(),
    }
    optional = ("start_logprobs", "reference_logprobs", "old_values", "targets", "values", "returns")
    return Experience(**dict.fromkeys(optional) | given | columns)


def micro_batch_of(lengths: Sequence[int]) -> MicroBatch:
    """Every token of such sequences."""
    nothing = torch.empty(0, dtype=torch.int64)
    return MicroBatch(
        token_ids=nothing,
        rows=torch.repeat_interleave(torch.tensor(lengths)),
        columns=nothing,
        targets=nothing,
        actions=torch.arange(sum(lengths)),
    )
