"""Objects that are made where they are called."""

import pytest

from services.contracts.errors import UserError
from services.control.host import AsyncHost, Host, Named, host_of


class Counter:
    """Counts, and refuses to begin below 0."""

    def __init__(self, *, first: int, unit: type = int) -> None:
        if first < 0:
            raise UserError(f"first is {first}")
        self._unit = unit
        self._count = first

    def next(self, step: int = 1) -> object:
        self._count += step
        return self._unit(self._count)

    async def later(self, step: int) -> object:
        return self.next(step)


HERE = Named(path=f"{__name__}:Counter")


@pytest.mark.parametrize("made_of", [Counter, HERE])
def test_an_object_is_made_once_and_called_by_name(made_of: type | Named) -> None:
    host = Host(made_of, {"first": 3, "unit": Named(path="builtins:float")})
    host.make()
    assert [host.call("next"), host.call("next", 2)] == [4.0, 6.0]
    assert isinstance(host.call("next"), float)


def test_what_the_constructor_raises_arrives_from_the_first_call() -> None:
    host = Host(HERE, {"first": -1})
    for _ in range(2):
        with pytest.raises(UserError, match="first is -1"):
            host.call("next")


async def test_methods_that_are_coroutines_are_awaited_and_others_called() -> None:
    host = AsyncHost(Counter, {"first": 0})
    assert [await host.call("later", 5), await host.call("next")] == [5, 6]


def test_a_process_is_called_by_what_it_hosts() -> None:
    assert [host_of(made_of, concurrency=1).__name__ for made_of in (Counter, HERE)] == ["Counter", "Counter"]
    assert issubclass(host_of(HERE, concurrency=2), AsyncHost)
