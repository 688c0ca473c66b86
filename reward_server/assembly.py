"""From configuration to a scorer: finds each reward, gives it its options, and puts them together.

It must not know gRPC. Invariant: whatever is wrong with a name, a file or an option is a `UserError` here, before the
server listens.
"""

import functools
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from reward_server.composition import CompositeScorer
from reward_server.config import RewardServerConfig
from reward_server.ensemble import EnsembleScorer
from reward_server.function import RewardFunction, RewardOptions
from reward_server.isolation import IsolatedScorer
from reward_server.part_config import RewardServiceConfig, RewardSource
from reward_server.parts import Part
from reward_server.remote import RemoteScorer
from reward_server.rewards import REWARDS, SCORERS
from reward_server.scorer import FunctionScorer, Scorer
from reward_server.shaping import Shaping
from services.contracts.errors import UserError
from services.contracts.settings import Section
from services.contracts.user_code import load_named

Options = TypeVar("Options", bound=Section)

SETTINGS_OF_SCORES = {"normalise", "clip", "gate", "when", "on_failure"}
"""Settings of a part, beside its weight, that change what the total is."""


def build_scorer(services: Sequence[RewardServiceConfig], config: RewardServerConfig) -> Scorer:
    """The total of `services`, run as `config` says. Needs a running event loop.

    Raises:
        UserError: naming the reward or option that is wrong.
    """
    return CompositeScorer(
        [
            replace(_part(service, config), weight=service.share, gate=service.gate, when=service.when)
            for service in services
        ]
    )


def load_reward(service: RewardSource) -> RewardFunction:
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
    function = replace(_with_options(REWARDS[service.name], service), gives_steps=False)  # None of the built-in does.
    return _with_options_in_version(function, service)


def _part(source: RewardSource, config: RewardServerConfig) -> Part:
    scorer = _scorer(source, config)
    return Part(
        scorer=scorer,
        label=source.label or scorer.description.name,
        shaping=Shaping(source.normalise, source.clip),
        on_failure=source.on_failure,
        settings=_digest(source.model_dump(mode="json", include=SETTINGS_OF_SCORES, exclude_defaults=True)),
    )


def _scorer(source: RewardSource, config: RewardServerConfig) -> Scorer:
    if source.remote is not None:
        return RemoteScorer(source.remote)
    if isinstance(source, RewardServiceConfig) and source.ensemble is not None:
        members = [_part(member, config) for member in source.ensemble.members]
        return EnsembleScorer(source.label or "ensemble", members, source.ensemble)
    if source.name in SCORERS:
        if source.isolate:
            raise UserError(f"reward {source.name!r} runs itself and cannot be isolated; leave out isolate")
        return _options(SCORERS[source.name], source).scorer(config)
    function = load_reward(source)
    if function.isolate if source.isolate is None else source.isolate:
        return IsolatedScorer(source, function, config)
    return FunctionScorer(function, timeout_s=config.timeout_s, num_threads=config.num_threads)


def _user_reward(service: RewardSource) -> RewardFunction:
    found = load_named(service.name, kind="reward")
    if isinstance(found, type) and issubclass(found, RewardOptions):
        function = _with_options(found, service)
        _refuse_wrong_parameters(function, service.name, {})
        return function
    if isinstance(found, RewardFunction):
        return _with_arguments(found, service)
    if not callable(found):
        raise UserError(f"reward {service.name!r} is {found!r:.80}; it must be a function of a sample")
    source, _, attribute = service.name.rpartition(":")
    stem = Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]
    name = re.sub(r"\W", "_", f"{stem}_{attribute}", flags=re.ASCII)
    return _with_arguments(RewardFunction(found, name=name), service)


def _with_options(options: type[RewardOptions], service: RewardSource) -> RewardFunction:
    return _options(options, service).reward()


def _options(options: type[Options], service: RewardSource) -> Options:
    try:
        return options(**service.options)
    except ValidationError as error:
        known = ", ".join(options.model_fields)
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise UserError(f"options of reward {service.name!r}: {faults} (its options are {known})") from error


def _with_arguments(function: RewardFunction, service: RewardSource) -> RewardFunction:
    _refuse_wrong_parameters(function, service.name, service.options)
    if not service.options:
        return function
    score = functools.partial(function.score, **service.options)
    return replace(function, score=score, name=function.description.name)


def _refuse_wrong_parameters(function: RewardFunction, name: str, options: Mapping[str, object]) -> None:
    """A call that cannot work would fail every sample of a run."""
    try:
        signature = inspect.signature(function.score)
    except (TypeError, ValueError):  # Compiled code need not tell its parameters.
        return
    argument = "a list of samples" if function.batched else "a sample"
    try:
        signature.bind(argument, **options)
    except TypeError as error:
        given = f"{argument} and the options {', '.join(options)}" if options else argument
        raise UserError(
            f"reward {name!r} has the parameters {signature}, and is called with {given}: {error}; give it one "
            "parameter for what is scored, and one with the name of each option"
        ) from error


def _with_options_in_version(function: RewardFunction, service: RewardSource) -> RewardFunction:
    """Servers that differ in their options alone must not pass for one reward."""
    if not service.options:
        return function
    return replace(function, version=f"{function.version}-{_digest(service.options)}")


def _digest(settings: Mapping[str, object]) -> str:
    """A few characters that tell these settings from others; none for no settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=4).hexdigest() if settings else ""
