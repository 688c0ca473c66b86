"""Everything that the controller decides, as a pure state machine.

Inputs are what happened (a prompt was drawn, a group was scored, a step was trained, a version is served); outputs are
how many prompts to admit and which groups to train. It owns no tasks, no clients and no clock. Invariants: a prompt
ends exactly once; nothing is trained that is staler than the bound; no scored group is thrown away for its age, nor
for anything but rewards that are all the same; a machine made from a snapshot goes on as the one that gave it.
"""

from collections import Counter
from collections.abc import Sequence

from services.contracts.records import NOT_SAMPLED, Prompt, ScoredGroup
from services.contracts.run_status import RunPhase
from services.control.admission import AdmissionRule
from services.control.ledger import Ledger
from services.control.open_work import OpenWork, under_rule
from services.control.rollout_buffer import Departure, RolloutBuffer, Waiting


class RunMachine:
    """The run's decisions.

    Args:
        rule: how many prompts may be under way.
        ledger: keeps the books, with `open_work`'s prompts open already.
        trained_steps: learner steps so far; also the policy version that is served.
        open_work: what a resumed run had under way. Running prompts are sampled anew, from the present version.
        max_filtered_per_step: flat groups of a step that other prompts may replace; 0 trains on all. The first step of
            a resumed run replaces more where more had been put aside.

    Raises:
        UserError: `rule` leaves no room for `open_work`.

    Attributes:
        trained_steps: steps that the learner has made.
        version: the policy version that every serving worker has acknowledged; below `trained_steps` while new
            weights are on their way.
        phase: a paused run admits and trains nothing; a draining one admits nothing.
    """

    def __init__(
        self,
        rule: AdmissionRule,
        ledger: Ledger,
        *,
        trained_steps: int = 0,
        open_work: OpenWork | None = None,
        max_filtered_per_step: int = 0,
    ) -> None:
        self._rule = rule
        self._ledger = ledger
        open_work, num_put_aside = under_rule(open_work or OpenWork(), rule, step=trained_steps)
        self._buffer = RolloutBuffer(
            batch=rule.prompts_per_step,
            capacity=(rule.max_staleness + 1) * rule.prompts_per_step,
            max_replaced=max_filtered_per_step,
            first_replaced=num_put_aside,
        )
        self._in_hand = Departure()
        self.trained_steps = trained_steps
        self.version = trained_steps
        self.phase: RunPhase = "running"
        for waiting in open_work.waiting:
            self._buffer.put(waiting)
        self._deadlines = dict.fromkeys(open_work.running, trained_steps + rule.max_staleness)

    @property
    def num_running(self) -> int:
        return len(self._deadlines)

    @property
    def num_waiting(self) -> int:
        return len(self._buffer)

    @property
    def open_work(self) -> OpenWork:
        """What a checkpoint has to remember; what was given out waits until the step is trained."""
        in_hand = (*self._in_hand.batch, *self._in_hand.replaced)
        return OpenWork(waiting=(*in_hand, *self._buffer.waiting), running=tuple(sorted(self._deadlines)))

    @property
    def filtered(self) -> list[ScoredGroup]:
        """The groups that leave untrained with the batch that was given out."""
        return [waiting.group for waiting in self._in_hand.replaced]

    @property
    def is_drained(self) -> bool:
        """Whether a draining run has nothing left that could make a whole step."""
        is_short = self._buffer.num_trainable < self._rule.prompts_per_step
        return self.phase == "draining" and not self._deadlines and is_short

    def room(self) -> int:
        """How many prompts are to be admitted now."""
        if self.phase != "running":
            return 0
        # Trained steps count as if all had been as large as those to come, since the rule is about those.
        trained = self.trained_steps * self._rule.prompts_per_step
        accepted = trained + len(self._in_hand.batch) + self._buffer.num_trainable
        return self._rule.room(accepted=accepted, running=len(self._deadlines), version=self.version)

    def admit(self, position: int, prompt: Prompt) -> None:
        self._ledger.admit(prompt.id, position=position, version=self.version)
        self._deadlines[position] = self.version + self._rule.max_staleness

    def accept(self, position: int, group: ScoredGroup) -> None:
        """The group of this prompt is sampled and scored, whole."""
        lowest = group.group.lowest_policy_version
        deadline = self._deadlines[position]
        admitted = deadline - self._rule.max_staleness
        assert lowest == NOT_SAMPLED or admitted <= lowest <= self.trained_steps, (
            f"prompt {group.group.prompt.id}, admitted at version {admitted}, has a token of version {lowest}"
        )
        self._ledger.accept(
            group.group.prompt.id,
            lowest_version=lowest,
            rewards=[reward.value for reward in group.rewards],
            reward_version=group.reward_version,
        )
        del self._deadlines[position]
        self._buffer.put(Waiting(deadline=deadline, position=position, group=group))

    def fail(self, position: int, prompt: Prompt, reason: str) -> int:
        """This prompt cannot be scored, for good; returns how many there are."""
        self._ledger.end(prompt.id, "failed", reason=reason)
        del self._deadlines[position]
        return self._ledger.counts["failed"]

    def next_batch(self) -> list[ScoredGroup] | None:
        """The groups of the next learner step, or None while they have to be waited for."""
        if self.phase == "paused":
            return None
        departure = self._buffer.take(step=self.trained_steps, running=Counter(self._deadlines.values()))
        if departure is None:
            return None
        self._in_hand = departure
        return [waiting.group for waiting in departure.batch]

    def staleness(self, group: ScoredGroup) -> int:
        """How many versions the group's oldest token is behind the learner."""
        lowest = group.group.lowest_policy_version
        return 0 if lowest == NOT_SAMPLED else self.trained_steps - lowest

    def trained(self, groups: Sequence[ScoredGroup]) -> list[int]:
        """The learner has made a step with these groups; returns the staleness of each."""
        staleness = [self.staleness(group) for group in groups]
        assert max(staleness) <= self._rule.max_staleness, f"staleness {staleness} above {self._rule.max_staleness}"
        self.trained_steps += 1
        for group in self.filtered:
            self._filter(group)
        self._in_hand = Departure()
        self._buffer.renew()
        for group, stale in zip(groups, staleness, strict=True):
            self._ledger.end(group.group.prompt.id, "trained", step=self.trained_steps, staleness=stale)
        return staleness

    def served(self, version: int) -> None:
        """Every serving worker has acknowledged this version."""
        assert version >= self.version, f"version {version} after version {self.version}"
        self.version = version

    def _filter(self, scored: ScoredGroup) -> None:
        value, num_rewards = scored.rewards[0].value, len(scored.rewards)
        reason = f"all {num_rewards} rewards are {value:g}, so that comparing them teaches nothing"
        self._ledger.end(scored.group.prompt.id, "filtered", reason=reason, step=self.trained_steps)
