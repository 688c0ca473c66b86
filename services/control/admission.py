"""The staleness rule: how many prompts may be under way.

A prompt is admitted while `accepted + running < (max_staleness + version + 1) · B` (AReaL, arXiv 2505.24298), with B
the prompts of one learner step. It is pure arithmetic and must not know workers or time.

Invariant: with the order in which `RolloutBuffer` lets groups go, a group that is admitted is trained at most
`max_staleness` versions after its oldest token was sampled, so nothing finished has to be thrown away for its age.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionRule:
    """Bounds staleness at the door; a run of `num_steps` admits no more than it will train."""

    prompts_per_step: int
    max_staleness: int
    num_steps: int | None = None

    def room(self, *, accepted: int, running: int, version: int) -> int:
        """How many more prompts may be admitted now.

        Args:
            accepted: groups scored since the run began, trained ones included, filtered ones not.
            running: prompts admitted and not yet accepted, filtered or failed.
            version: the policy version that every worker serves at least.
        """
        steps = self.max_staleness + version + 1
        limit = (steps if self.num_steps is None else min(steps, self.num_steps)) * self.prompts_per_step
        return max(0, limit - accepted - running)
