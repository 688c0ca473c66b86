"""What a run has under way between two steps, and how a process with other settings takes it up.

It must not know files, prompts or time. Invariant: whatever is taken up can be trained within the staleness bound of
the process that takes it up, or it is refused as a whole; nothing is left out but groups that dynamic sampling had put
aside already.
"""

from collections import Counter
from dataclasses import dataclass, replace

from services.contracts.errors import UserError
from services.contracts.records import NOT_SAMPLED
from services.control.admission import AdmissionRule
from services.control.rollout_buffer import Waiting


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenWork:
    """The prompts that have not ended: scored groups that wait, and positions in the prompt stream of those running."""

    waiting: tuple[Waiting, ...] = ()
    running: tuple[int, ...] = ()


def under_rule(work: OpenWork, rule: AdmissionRule, *, step: int) -> tuple[OpenWork, int]:
    """The work with this rule's deadlines, and how many flat groups have to leave untrained for the rest to meet them.

    That is none unless dynamic sampling had put them aside, for others were admitted in their places.

    Args:
        step: learner steps so far. What is running is sampled anew, from that version.

    Raises:
        UserError: `max_staleness` or `prompts_per_step` is less than it takes to train what waits.
    """
    waiting = tuple(_with_deadline(each, rule.max_staleness) for each in work.waiting)
    due = Counter(each.deadline for each in waiting) + Counter({step + rule.max_staleness: len(work.running)})
    flat = Counter(each.deadline for each in waiting if each.group.is_flat)
    too_many = num_due = num_flat = 0
    for deadline in sorted(due):
        num_due += due[deadline]
        num_flat += flat[deadline]
        num_steps = deadline + 1 - step
        if num_due - num_flat > num_steps * rule.prompts_per_step:
            raise UserError(
                f"the checkpoint of step {step} has {num_due} prompts under way that must be trained by step "
                f"{deadline + 1}, and with train.max_staleness {rule.max_staleness} and train.prompts_per_step "
                f"{rule.prompts_per_step} they cannot be; resume with the values that the run had before"
            )
        num_steps = num_steps if rule.num_steps is None else min(num_steps, rule.num_steps - step)
        too_many = max(too_many, num_due - num_steps * rule.prompts_per_step)
    return replace(work, waiting=waiting), too_many


def _with_deadline(waiting: Waiting, max_staleness: int) -> Waiting:
    lowest = waiting.group.group.lowest_policy_version
    if lowest == NOT_SAMPLED:
        return waiting
    return replace(waiting, deadline=min(waiting.deadline, lowest + max_staleness))
