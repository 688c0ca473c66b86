"""The life of each prompt: drawn once, accepted with its rewards, trained at most once, within the staleness bound.

It must not know workers or attempts. Invariant: only the history that counts is looked at, so that work which a resume
made void is neither held against a run nor for it.
"""

import math
from collections import Counter

from services.control.checks.findings import Findings
from services.control.checks.history import Check, Handlers
from services.control.ledger_events import (
    Accepted,
    Admitted,
    Dispatched,
    Failed,
    Filtered,
    Published,
    Resumed,
    RunEnded,
    RunStarted,
    Trained,
)


class PromptChecks(Check):
    """I1, I2 and I3.

    Attributes:
        open: prompts that have not ended, each with its group once that was accepted.
        staleness: prompts trained, by staleness.
    """

    def __init__(self, findings: Findings) -> None:
        self.open: dict[str, Accepted | None] = {}
        self.staleness: Counter[int] = Counter()
        self._findings = findings
        self._admissions: dict[str, tuple[int, int]] = {}
        self._ended: dict[str, tuple[str, int]] = {}
        self._position: int | None = None
        self._published = 0
        self._samples_per_prompt = 0
        self._max_staleness = 0
        self._prompts_per_step = 0
        self._num_steps = 0
        self._may_stay_open = 0

    @property
    def valid(self) -> Handlers:
        return {
            RunStarted: self._started,
            Resumed: self._resumed,
            Published: self._publish,
            Admitted: self._admitted,
            Dispatched: self._dispatched,
            Accepted: self._accepted,
            Trained: self._trained,
            Filtered: self._ended_untrained,
            Failed: self._ended_untrained,
            RunEnded: self._run_ended,
        }

    @property
    def void(self) -> Handlers:
        return {RunStarted: self._started}

    def open_after(self, num_events: int) -> dict[int, str]:
        """The prompts that were open after so many events of the ledger, by their position in the stream."""
        return {
            position: prompt
            for prompt, (position, line) in self._admissions.items()
            if line <= num_events and (prompt not in self._ended or self._ended[prompt][1] > num_events)
        }

    def _started(self, event: RunStarted, line: int) -> None:
        self._samples_per_prompt = event.samples_per_prompt
        self._max_staleness = event.max_staleness
        self._prompts_per_step = event.prompts_per_step
        self._num_steps = event.num_steps

    def _resumed(self, event: Resumed, line: int) -> None:
        """With a lower num_steps than before a run may have more under way than it has left to train."""
        self._published = event.step
        num_left = (self._num_steps - event.step) * self._prompts_per_step
        self._may_stay_open = max(0, len(self.open) - num_left)

    def _publish(self, event: Published, line: int) -> None:
        self._published = event.version

    def _admitted(self, event: Admitted, line: int) -> None:
        if self._position is not None and event.position != self._position + 1:
            self._findings.add(
                "I1",
                f"prompt {event.prompt} (line {line}) has position {event.position} in the stream, and "
                f"{self._position + 1} was next: a prompt was skipped or drawn twice",
            )
        self._position = event.position
        if event.prompt in self.open or event.prompt in self._ended:
            self._findings.add("I1", f"prompt {event.prompt} was admitted again at line {line}; {self._fate(event)}")
        else:
            self.open[event.prompt] = None
            self._admissions[event.prompt] = (event.position, line)

    def _dispatched(self, event: Dispatched, line: int) -> None:
        if event.prompt not in self.open:
            self._findings.add("I1", f"prompt {event.prompt} was dispatched at line {line}; {self._fate(event)}")
        elif self.open[event.prompt] is not None:
            self._findings.add("I1", f"prompt {event.prompt} was dispatched at line {line} after it was accepted")

    def _accepted(self, event: Accepted, line: int) -> None:
        where = f"prompt {event.prompt} (line {line})"
        if event.prompt not in self.open:
            self._findings.add("I1", f"{where} was accepted; {self._fate(event)}")
            return
        if self.open[event.prompt] is not None:
            self._findings.add("I1", f"{where} was accepted twice")
        self.open[event.prompt] = event
        wrong = [reward for reward in event.rewards if reward is None or not math.isfinite(reward)]
        if wrong:
            self._findings.add("I2", f"{where} was accepted with a reward that is not finite: {wrong[0]}")
        if len(event.rewards) != self._samples_per_prompt:
            self._findings.add(
                "I2", f"{where} was accepted with {len(event.rewards)} rewards for {self._samples_per_prompt} samples"
            )
        if event.lowest_version > self._published:
            self._findings.add(
                "I3",
                f"{where} has tokens of version {event.lowest_version} at least, and the newest that was published "
                f"was {self._published}",
            )

    def _trained(self, event: Trained, line: int) -> None:
        where = f"prompt {event.prompt} was trained at step {event.step} (line {line})"
        group = self.open.get(event.prompt)
        if event.prompt in self._ended:
            self._findings.add("I1", f"{where}; {self._fate(event)}")
        elif group is None:
            self._findings.add("I2", f"{where} without having been accepted; {self._fate(event)}")
        else:
            self._check_staleness(event, group, where)
        self._end(event.prompt, f"was trained at step {event.step}", line)

    def _check_staleness(self, event: Trained, group: Accepted, where: str) -> None:
        staleness = event.step - 1 - group.lowest_version
        self.staleness[staleness] += 1
        if staleness != event.staleness:
            self._findings.add(
                "I3",
                f"{where} with staleness {event.staleness} in the ledger; its lowest version "
                f"{group.lowest_version} makes it {staleness}",
            )
        if not 0 <= staleness <= self._max_staleness:
            self._findings.add(
                "I3", f"{where} with staleness {staleness}; the bound is 0 to {self._max_staleness} (max_staleness)"
            )

    def _ended_untrained(self, event: Filtered | Failed, line: int) -> None:
        if event.prompt not in self.open:
            self._findings.add("I1", f"prompt {event.prompt} {event.event} at line {line}; {self._fate(event)}")
        group = self.open.get(event.prompt)
        if isinstance(event, Filtered) and group is not None and len(set(group.rewards)) > 1:
            self._findings.add(
                "I1",
                f"prompt {event.prompt} was filtered at line {line} with the rewards {list(group.rewards)}; only a "
                "group whose rewards are all the same may go untrained",
            )
        self._end(event.prompt, f"had {event.event}", line)

    def _run_ended(self, event: RunEnded, line: int) -> None:
        if event.how != "finished" or len(self.open) <= self._may_stay_open:
            return
        for prompt, group in self.open.items():
            so_far = "never accepted" if group is None else "accepted but never trained"
            self._findings.add(
                "I1",
                f"prompt {prompt} was lost: admitted at line {self._admissions[prompt][1]}, {so_far}, and the run is "
                f"finished at line {line}",
            )

    def _end(self, prompt: str, how: str, line: int) -> None:
        self.open.pop(prompt, None)
        self._ended.setdefault(prompt, (how, line))

    def _fate(self, event: Admitted | Dispatched | Accepted | Trained | Filtered | Failed) -> str:
        if event.prompt in self.open:
            return "it was still open"
        if event.prompt in self._ended:
            how, line = self._ended[event.prompt]
            return f"it {how} before, at line {line}"
        return "it was never admitted"
