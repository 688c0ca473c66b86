"""The model that is served, and the one that takes its place when another stands at its path.

It must not know how a model scores. A trainer makes a new version known by putting another folder, or another target of
a symbolic link, at the path in one move. Invariants: the served model is whole and was checked; a folder that does not
load, or whose version is the one served, changes nothing and is told once.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

from services.contracts.errors import UserError
from services.contracts.reward_model import CARD_FILE, RewardModelCard

logger = logging.getLogger(__name__)

Place: TypeAlias = tuple[Path, int, int, int]
"""What stands at a path: the folder that it leads to, and the identity of the card there."""


class Version(Protocol):
    """One version of a reward model, whole and checked."""

    card: RewardModelCard


Served = TypeVar("Served", bound=Version)


class ModelWatch(Generic[Served]):
    """Keeps the newest good model at `path`; `load` makes one of a folder, or raises `UserError`.

    Attributes:
        current: the model that is served; there is one once `start` returned.
        num_taken_up: models that took the place of another.
        num_refused: models that could not.
    """

    def __init__(self, path: Path, load: Callable[[Path], Served]) -> None:
        self.current: Served
        self.num_taken_up = 0
        self.num_refused = 0
        self._path = path
        self._load = load
        self._place: Place | None = None

    async def start(self) -> None:
        """Load the first model. Raises `UserError`: there is none at the path, or it is not whole."""
        self._place = place_of(self._path)
        folder = self._path if self._place is None else self._place[0]
        self.current = await asyncio.to_thread(self._load, folder)
        logger.info("reward model %s is served from %s", self.current.card.version, folder)

    async def watch(self, every_s: float) -> None:
        """Look every `every_s` seconds, for ever."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        """Take up what stands at the path, if that is another model than when it was last looked."""
        place = await asyncio.to_thread(place_of, self._path)
        if place is None or place == self._place:
            return
        self._place = place
        served = self.current.card.version
        try:
            model = await asyncio.to_thread(self._load, place[0])
            if model.card.version == served:
                raise UserError("its version is the same; another model needs another version")
        except UserError as error:
            self.num_refused += 1
            logger.error("reward model %s is kept, for that in %s cannot be served: %s", served, place[0], error)
        else:
            self.current = model
            self.num_taken_up += 1
            logger.info("reward model %s from %s takes the place of %s", model.card.version, place[0], served)


def place_of(path: Path) -> Place | None:
    """What stands at the path; None while there is no reward model."""
    try:
        folder = path.resolve(strict=True)
        card = (folder / CARD_FILE).stat()
    except OSError:
        return None
    return folder, card.st_ino, card.st_mtime_ns, card.st_size
