"""From a part's own values to those that count: normalised, then clipped.

It must not know samples or weights. Invariants: the values of one batch are normalised on one scale, by statistics from
before that batch; values on different scales have different `scale_version`s; what comes out lies within the range that
`bounds` gives, also while warming up and after a restart.
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import fmean

from reward_server.part_config import NormaliseConfig
from reward_server.ranges import Range, clipped, within
from services.contracts.errors import UserError

logger = logging.getLogger(__name__)

LEAST_STD = 1e-6
LARGEST = 1e100
"""Beyond it a value counts as this in the statistics, whose squares would overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """How many values there were, their mean, and the sum of their squared distances from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def extended(self, values: Sequence[float]) -> "Moments":
        """With more values, by the pairwise update of Chan, Golub and LeVeque."""
        if not values:
            return self
        values = [within(value, (-LARGEST, LARGEST)) for value in values]
        mean = fmean(values)
        count = self.count + len(values)
        shift = mean - self.mean
        squares = sum((value - mean) * (value - mean) for value in values)
        return Moments(
            count=count,
            mean=self.mean + shift * len(values) / count,
            squares=self.squares + squares + shift * shift * self.count * len(values) / count,
        )


class Normaliser:
    """Brings values to mean 0 and deviation 1, by fixed statistics or by those of the values so far.

    A running scale stays as it is until twice as many values were seen as it was made of: samples that belong together
    and met a change of scale find the same one when they are scored again, at the latest at the fourth time.

    Attributes:
        scale_version: tells a running scale from others; empty for a fixed one, and while the values are warming up.

    Raises:
        UserError: the file with the statistics is damaged, or cannot be written.
    """

    def __init__(self, config: NormaliseConfig) -> None:
        self._config = config
        self._mean, self._std = config.mean or 0.0, config.std or 1.0
        self._renew_at = config.warm_up
        self.scale_version = ""
        self.moments = _read(config.file) if config.file else Moments()
        self._renew()

    def normalise(self, values: Sequence[float]) -> list[float]:
        """The values on the new scale; with running statistics they count for later ones."""
        limit = self._config.limit
        normalised = [within((value - self._mean) / self._std, (-limit, limit)) for value in values]
        if self._config.mean is None:
            self.moments = self.moments.extended(values)
            self._keep()
            self._renew()
        return normalised

    def _renew(self) -> None:
        moments = self.moments
        if moments.count >= self._renew_at:
            self._renew_at = 2 * moments.count
            self._mean, self._std = moments.mean, max(moments.std, LEAST_STD)
            digest = blake2b(repr((self._mean, self._std)).encode(), digest_size=4).hexdigest()
            self.scale_version = f"scale-{digest}"

    def _keep(self) -> None:
        try:
            if self._config.file is not None:
                _write(self._config.file, self.moments)
        except OSError as error:  # The scores are right all the same.
            logger.warning("the statistics cannot be kept in %s: %s", self._config.file, error.strerror)


class Shaping:
    """The normaliser and the clip of one part, either of which may be missing."""

    def __init__(self, normalise: NormaliseConfig | None = None, clip: Range | None = None) -> None:
        self._normaliser = Normaliser(normalise) if normalise else None
        self._limit = normalise.limit if normalise else math.inf
        self._clip = clip
        self.changes_values = normalise is not None or clip is not None

    @property
    def scale_version(self) -> str:
        """Tells the scale of the next batch from others that this part may have; empty where there is one only."""
        return self._normaliser.scale_version if self._normaliser else ""

    def shape(self, values: Sequence[float]) -> list[float]:
        """The values that count, of one batch."""
        if self._normaliser is not None:
            values = self._normaliser.normalise(values)
        return [within(value, self._clip) for value in values] if self._clip else list(values)

    def bounds(self, bounds: Range) -> Range:
        """The range of what counts, for values within `bounds`."""
        if self._normaliser is not None:
            bounds = (-self._limit, self._limit)
        return clipped(bounds, self._clip) if self._clip else bounds


def _read(path: Path) -> Moments:
    try:
        moments = Moments(**json.loads(path.read_text())) if path.exists() else Moments()
        _write(path, moments)  # A file that cannot be written is told before anything is served.
    except OSError as error:
        raise UserError(f"the statistics cannot be kept in {path}: {error.strerror}; give another file") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"the statistics in {path} are damaged ({error}); delete the file to begin anew") from error
    if not (moments.count >= 0 and moments.squares >= 0 and math.isfinite(moments.mean)):
        raise UserError(f"the statistics in {path} are {moments}, which no values have; delete the file to begin anew")
    return moments


def _write(path: Path, moments: Moments) -> None:
    """At any moment either all of the old file or all of the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(moments)))
    partial.replace(path)
