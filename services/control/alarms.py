"""When a reward is being gamed, or is broken: readings of a run's metrics, each against a threshold.

Pure: rows of metrics in, alarms out; what is done about one is another's. A new alarm is a function, a line in `ALARMS`
and a field of `AlarmsConfig`. Invariants: what is raised depends on the rows alone, so a resumed run that is shown its
rows again goes on as if it had not stopped; an alarm that lasts is raised once, and again only after it was quiet.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from pydantic import Field

from services.contracts.settings import Section
from services.control.catalogue import (
    AGREEMENT,
    AT_MAXIMUM,
    FLAT_GROUPS,
    GOLD,
    GOLD_SPREAD,
    KL,
    LENGTH_CORRELATION,
    ONE_VALUE,
    PROXY,
    REWARD,
    REWARD_SPREAD,
)

DRIFT_STEPS = 10
LEAST_DRIFT_STEPS = 3
LEAST_SPREAD = 1e-9

Row = Mapping[str, float]
Action = Literal["ignore", "warn", "pause", "stop"]


class AlarmConfig(Section):
    """One alarm."""

    threshold: float
    """The alarm counts readings above this."""
    window: int = Field(default=5, ge=1)
    """So many of them in a row raise it. Readings are steps, or evaluations where the gold reward is needed."""
    action: Action = "warn"
    """warn says so; pause also commits a checkpoint and holds the run until `trireme resume`; stop ends it, with a
    checkpoint and exit code 1; ignore turns the alarm off."""


class AlarmsConfig(Section):
    """Against reward hacking and broken rewards: what is watched, and what happens."""

    divergence: AlarmConfig = AlarmConfig(threshold=0.25, window=2, action="pause")
    """How far the gold reward has fallen below its best, in standard deviations of its completions, while the proxy has
    not fallen with it. Needs `gold`."""
    sign_flip: AlarmConfig = AlarmConfig(threshold=0.2, window=2, action="pause")
    """How strongly proxy and gold contradict each other on the same completions: minus their correlation. Needs
    `gold`."""
    drift: AlarmConfig = AlarmConfig(threshold=3.0, window=2)
    """How far the mean reward of a step has jumped from the 10 steps before, in standard deviations of the rewards."""
    saturation: AlarmConfig = AlarmConfig(threshold=0.95, window=10)
    """The share of rewards at the declared maximum, or of sampled groups whose rewards are all equal, whichever is
    greater."""
    constant: AlarmConfig = AlarmConfig(threshold=0.99, window=10)
    """The share of rewards with one and the same value that is not the declared maximum."""
    length: AlarmConfig = AlarmConfig(threshold=0.6, window=10)
    """The correlation, of either sign, of reward and completion length within groups."""
    kl: AlarmConfig = AlarmConfig(threshold=0.5)
    """The KL to the reference, in nats per token. Needs `learner.kl_coefficient` above 0, without which it is not
    measured."""


@dataclass(kw_only=True, slots=True)
class History:
    """What readings are taken from.

    Attributes:
        now: the row at hand.
        steps: the rows before it, as many as a reading looks back.
        evaluations: every earlier row with a gold reward.
    """

    now: Row = field(default_factory=dict)
    steps: deque[Row] = field(default_factory=lambda: deque(maxlen=DRIFT_STEPS))
    evaluations: list[Row] = field(default_factory=list)

    def turn_to(self, row: Row) -> None:
        """Go on to the next row."""
        if self.now:
            self.steps.append(self.now)
        if GOLD in self.now:
            self.evaluations.append(self.now)
        self.now = row


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """How one alarm reads the history: a number that is worse the greater it is, or None where there is none.

    `words` say what a reading means.
    """

    read: Callable[[History], float | None]
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """An alarm that was raised."""

    name: str
    action: Action
    reading: float
    text: str


class Alarms:
    """Watches one run.

    Args:
        rows: the metrics of the run so far, in order; nothing is raised for them again.
    """

    def __init__(self, config: AlarmsConfig, rows: Iterable[Row] = ()) -> None:
        self._settings: dict[str, AlarmConfig] = {name: getattr(config, name) for name in ALARMS}
        self._history = History()
        self._num_above: Counter[str] = Counter()
        for row in rows:
            self.check(row)

    def check(self, row: Row) -> list[Alarm]:
        """The alarms that the next row raises."""
        self._history.turn_to(row)
        readings = {name: signal.read(self._history) for name, signal in ALARMS.items()}
        return [
            alarm
            for name, reading in readings.items()
            if reading is not None and (alarm := self._judge(name, reading)) is not None
        ]

    def _judge(self, name: str, reading: float) -> Alarm | None:
        settings = self._settings[name]
        self._num_above[name] = self._num_above[name] + 1 if reading > settings.threshold else 0
        if settings.action == "ignore" or self._num_above[name] != settings.window:
            return None
        times = f", {settings.window} readings in a row" if settings.window > 1 else ""
        text = f"{name}: {ALARMS[name].words.format(reading)} (threshold {settings.threshold:g}{times})"
        return Alarm(name=name, action=settings.action, reading=reading, text=text)


def _divergence(history: History) -> float | None:
    now = history.now
    if GOLD not in now or not history.evaluations:
        return None
    best = max(history.evaluations, key=lambda row: row[GOLD])
    if now[PROXY] < best[PROXY]:
        return 0.0
    return (best[GOLD] - now[GOLD]) / max(best[GOLD_SPREAD], now[GOLD_SPREAD], LEAST_SPREAD)


def _sign_flip(history: History) -> float | None:
    return -history.now[AGREEMENT] if AGREEMENT in history.now else None


def _drift(history: History) -> float | None:
    before = [row for row in history.steps if REWARD in row and REWARD_SPREAD in row]
    if REWARD not in history.now or REWARD_SPREAD not in history.now or len(before) < LEAST_DRIFT_STEPS:
        return None
    jump = abs(history.now[REWARD] - fmean(row[REWARD] for row in before))
    return jump / max(fmean(row[REWARD_SPREAD] for row in before), history.now[REWARD_SPREAD], LEAST_SPREAD)


def _saturation(history: History) -> float | None:
    return max(_given(history.now, AT_MAXIMUM, FLAT_GROUPS), default=None)


def _length(history: History) -> float | None:
    return max(map(abs, _given(history.now, LENGTH_CORRELATION)), default=None)


def _given(row: Row, *names: str) -> Sequence[float]:
    return [row[name] for name in names if name in row]


ALARMS: Mapping[str, Signal] = {
    "divergence": Signal(
        read=_divergence,
        words="the gold reward is {:.2f} standard deviations below its best, and the proxy has not fallen with it",
    ),
    "sign_flip": Signal(read=_sign_flip, words="proxy and gold contradict each other, with a correlation of -{:.2f}"),
    "drift": Signal(read=_drift, words="the mean reward has jumped by {:.1f} standard deviations"),
    "saturation": Signal(
        read=_saturation, words="{:.0%} of the rewards are at their maximum, or of the groups without any difference"
    ),
    "constant": Signal(
        read=lambda history: history.now.get(ONE_VALUE), words="{:.0%} of the rewards are one and the same value"
    ),
    "length": Signal(read=_length, words="reward goes with the length of completions, with a correlation of ±{:.2f}"),
    "kl": Signal(
        read=lambda history: history.now.get(KL), words="the policy is {:.3g} nats a token from its reference"
    ),
}
