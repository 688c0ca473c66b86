"""What stands for an object in a process of its own, and what makes it there.

It must not know Ray. Invariants: the process that orders an object need not import what that is made of; what its
constructor raises arrives as it was raised, from the first call.
"""

import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """Something that is imported only where it is used, such as what needs torch: "package.module:name"."""

    path: str

    def load(self) -> Any:  # Any: whatever has that name
        return pkgutil.resolve_name(self.path)


class Host:
    """Does one call at a time.

    Args:
        made_of: the object's class.
        arguments: those of its constructor; what is `Named` is imported first.
    """

    def __init__(self, made_of: type | Named, arguments: Mapping[str, object]) -> None:
        self._made_of = made_of
        self._arguments = arguments
        self._made: Any = None  # Any: of the class that was asked for

    def make(self) -> None:
        """Make the object; otherwise the first call does."""
        if self._made is None:
            kind = _loaded(self._made_of)
            self._made = kind(**{name: _loaded(value) for name, value in self._arguments.items()})

    def call(self, method: str, *args: object) -> Any:  # Any: what the method returns
        self.make()
        return getattr(self._made, method)(*args)


class AsyncHost(Host):
    """Does many calls at a time, of methods that are coroutines."""

    async def call(self, method: str, *args: object) -> Any:  # Any: as above
        result = super().call(method, *args)
        return await result if inspect.isawaitable(result) else result


def host_of(made_of: type | Named, *, concurrency: int) -> type[Host]:
    """A host with the class's name, as what watches processes calls them by it."""
    name = made_of.path.rpartition(":")[2] if isinstance(made_of, Named) else made_of.__name__
    return type(name, (AsyncHost if concurrency > 1 else Host,), {})


def _loaded(value: Any) -> Any:  # Any: an argument, or what it names
    return value.load() if isinstance(value, Named) else value
