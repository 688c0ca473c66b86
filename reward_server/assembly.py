"""From configuration to a scorer: finds each named reward, gives it its options, and weighs them together.

It must not know gRPC. Invariant: whatever is wrong with a name, a file or an option is a `UserError` here, before the
server listens.
"""

import functools
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pydantic import ValidationError

from reward_server.composition import WeightedPart, WeightedScorer
from reward_server.config import RewardServerConfig, RewardServiceConfig
from reward_server.function import RewardFunction, RewardOptions
from reward_server.isolation import IsolatedScorer
from reward_server.rewards import REWARDS, SCORERS
from reward_server.scorer import FunctionScorer, Scorer
from services.contracts.errors import UserError
from services.contracts.settings import Section

Options = TypeVar("Options", bound=Section)


def build_scorer(services: Sequence[RewardServiceConfig], config: RewardServerConfig) -> Scorer:
    """The weighted sum of `services`, run as `config` says. Needs a running event loop.

    Raises:
        UserError: naming the reward or option that is wrong.
    """
    return WeightedScorer([WeightedPart(scorer=_part(service, config), weight=service.weight) for service in services])


def load_reward(service: RewardServiceConfig) -> RewardFunction:
    """The reward that `service` names, with its options.

    Raises:
        UserError: there is no such reward, its code does not load, or an option is wrong.
    """
    if ":" in service.name:
        return _with_options_in_version(_user_reward(service), service)
    if service.name not in REWARDS:
        raise UserError(
            f"there is no reward {service.name!r}; built in are {', '.join([*REWARDS, *SCORERS])}; "
            "your own is given as my_reward.py:score"
        )
    return _with_options_in_version(_with_options(REWARDS[service.name], service), service)


def _part(service: RewardServiceConfig, config: RewardServerConfig) -> Scorer:
    if service.name in SCORERS:
        if service.isolate:
            raise UserError(f"reward {service.name!r} runs itself and cannot be isolated; leave out isolate")
        return _options(SCORERS[service.name], service).scorer(config)
    function = load_reward(service)
    if function.isolate if service.isolate is None else service.isolate:
        return IsolatedScorer(service, function, config)
    return FunctionScorer(function, timeout_s=config.timeout_s, num_threads=config.num_threads)


def _user_reward(service: RewardServiceConfig) -> RewardFunction:
    source, _, attribute = service.name.rpartition(":")
    module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    found = getattr(module, attribute, None)
    if found is None:
        raise UserError(f"{source} has no {attribute!r}, which reward {service.name!r} names")
    if isinstance(found, type) and issubclass(found, RewardOptions):
        return _with_options(found, service)
    if isinstance(found, RewardFunction):
        return _with_arguments(found, service)
    if not callable(found):
        raise UserError(f"reward {service.name!r} is {found!r:.80}; it must be a function of a sample")
    stem = Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]
    name = re.sub(r"\W", "_", f"{stem}_{attribute}", flags=re.ASCII)
    return _with_arguments(RewardFunction(found, name=name), service)


def _with_options(options: type[RewardOptions], service: RewardServiceConfig) -> RewardFunction:
    return _options(options, service).reward()


def _options(options: type[Options], service: RewardServiceConfig) -> Options:
    try:
        return options(**service.options)
    except ValidationError as error:
        known = ", ".join(options.model_fields)
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise UserError(f"options of reward {service.name!r}: {faults} (its options are {known})") from error


def _with_arguments(function: RewardFunction, service: RewardServiceConfig) -> RewardFunction:
    if not service.options:
        return function
    score = functools.partial(function.score, **service.options)
    return replace(function, score=score, name=function.description.name)


def _with_options_in_version(function: RewardFunction, service: RewardServiceConfig) -> RewardFunction:
    """Servers that differ in their options alone must not pass for one reward."""
    if not service.options:
        return function
    digest = blake2b(json.dumps(service.options, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
    return replace(function, version=f"{function.version}-{digest}")


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no reward file {path} (looked in {Path.cwd()})")
    name = f"user_reward_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # As an import would; dataclasses of the file look themselves up there.
    sys.path.insert(0, str(path.parent.resolve()))  # As for a script: its neighbours can be imported.
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"the reward file {path} does not load: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(f"the reward module {name} does not load: {type(error).__name__}: {error}") from error
