"""From last hidden states of student and teacher to logprobs of given tokens and the divergence between the two.

It must not know how much either counts. Invariants: as in `token_head`, no more than a piece of each model's logits
exists at once, also in the backward pass; of two vocabularies padded to different sizes, only what both have is
compared. N tokens, H hidden size of the student, G of the teacher, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppo_learner.divergences import DIVERGENCES
from ppo_learner.teacher_config import TeacherConfig
from ppo_learner.token_head import OutputLayer


class DistillationHead(OutputLayer):
    """The student's language-model head, compared with the teacher's."""

    def __init__(self, output: nn.Module, config: Any, teacher: TeacherConfig) -> None:  # Any: transformers
        super().__init__(output, config)
        self._divergence = DIVERGENCES[teacher.direction]
        self._temperature = teacher.temperature

    def forward(
        self, states: Tensor, targets: Tensor, teacher_states: Tensor, teacher: OutputLayer
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each target at temperature 1, and divergence of its distribution at the teacher's.

        Args:
            states: (N, H) the student's last hidden states at the positions that predict the targets.
            targets: (N,) token ids.
            teacher_states: (N, G) the teacher's, there.
            teacher: its head.

        Returns:
            (N,) logprobs and (N,) divergences in nats, float32.
        """
        pieces = self.num_pieces(len(states))
        split = zip(states.chunk(pieces), targets.chunk(pieces), teacher_states.chunk(pieces), strict=True)
        outcomes = [self._recomputed(*piece, teacher, whole=pieces == 1) for piece in split]
        return torch.cat([logprobs for logprobs, _ in outcomes]), torch.cat([apart for _, apart in outcomes])

    def _recomputed(
        self, states: Tensor, targets: Tensor, teacher_states: Tensor, teacher: OutputLayer, *, whole: bool
    ) -> tuple[Tensor, Tensor]:
        if whole or not torch.is_grad_enabled():
            return self._outcomes(states, targets, teacher_states, teacher)
        outcome: tuple[Tensor, Tensor] = checkpoint(
            self._outcomes, states, targets, teacher_states, teacher, use_reentrant=False
        )
        return outcome

    def _outcomes(
        self, states: Tensor, targets: Tensor, teacher_states: Tensor, teacher: OutputLayer
    ) -> tuple[Tensor, Tensor]:
        logits = self.logits(states)  # (N, V)
        logprobs = logits.gather(1, targets[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
        with torch.no_grad():
            theirs = teacher.logits(teacher_states)
            shared = min(logits.shape[1], theirs.shape[1])
            theirs = torch.log_softmax(theirs[:, :shared] / self._temperature, dim=-1)
        ours = torch.log_softmax(logits[:, :shared] / self._temperature, dim=-1)
        return logprobs, self._divergence(ours, theirs)
