"""What answers the policy between its turns: a tool, a game, a user that is played.

An environment is a function of a `Dialogue`: its answer is text that the policy reads before it goes on, and None ends
the dialogue. It sees all that was said and keeps nothing between two calls, so that a group that is sampled anew, by
another worker after a loss, is the same. To add one: a file here, a line in `ENVIRONMENTS`, a test.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from rollout_workers.environment_config import EnvironmentConfig
from rollout_workers.environments.calculator import calculator
from rollout_workers.environments.python_tool import python
from services.contracts.dialogue import Dialogue
from services.contracts.errors import UserError
from services.contracts.user_code import load_named

Environment: TypeAlias = Callable[[Dialogue], str | None]

ENVIRONMENTS: Mapping[str, Callable[..., str | None]] = {"calculator": calculator, "python": python}


def load_environment(config: EnvironmentConfig) -> Environment:
    """The environment that `config` names, with its options.

    Raises:
        UserError: there is no such environment, its code does not load, or an option is wrong.
    """
    function = _named(config.name)
    try:
        inspect.signature(function).bind(None, **config.options)
    except TypeError as error:
        raise UserError(
            f"rollout.environment.options of {config.name!r} do not fit it: {error}; it is called with a dialogue and "
            f"the options, as {config.name}{inspect.signature(function)}"
        ) from error
    return partial(function, **config.options)


def _named(name: str) -> Callable[..., str | None]:
    if ":" not in name:
        if name not in ENVIRONMENTS:
            raise UserError(
                f"there is no environment {name!r}; built in are {', '.join(ENVIRONMENTS)}; your own is given as "
                "my_environment.py:respond"
            )
        return ENVIRONMENTS[name]
    function: Callable[..., str | None] = load_named(name, kind="environment")
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise UserError(
            f"environment {name!r} is {function!r:.80}; it must be a plain function of a dialogue, which may block: "
            "each call has a thread"
        )
    return function
