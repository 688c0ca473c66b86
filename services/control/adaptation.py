"""A reward model that learns while a policy is trained against it: label, retrain, put in the place of the last.

    the run's samples ──▶ pairs.jsonl ──▶ trireme reward-model ──▶ versions/N/export ◀── latest ◀── its reward server
                 (told apart by another reward)

It must not know how a model is trained or served, and the run and its reward server know nothing of this: they find
another model at `latest`. Invariant: every process here may be killed at any time and started again.
"""

import asyncio
from contextlib import closing
from typing import ClassVar

from reward_server.config import RewardConfig
from services.contracts.errors import UserError
from services.contracts.interfaces import RewardScorer
from services.control import run_folder
from services.control.config import SettingsRoot
from services.control.fresh_pairs import PairQueue, PairsConfig
from services.control.reward_service import open_reward_service
from services.control.reward_versions import AdaptSection, RewardVersions, Tell


class LabelsConfig(RewardConfig):
    """Where the labelling reward comes from; the settings are those of a run's `reward`."""

    section: ClassVar[str] = "labels."


class AdaptConfig(SettingsRoot):
    """Everything `trireme adapt` can be told."""

    run: AdaptSection
    labels: LabelsConfig
    """The reward that tells which completion is better: a judge, a verifier, people behind a service of their own."""
    pairs: PairsConfig = PairsConfig()


async def adapt(config: AdaptConfig, *, tell: Tell) -> None:
    """Follow the run until the versions are made, or it has ended. The caller holds the folder.

    Raises:
        UserError: what was given cannot be used.
        TriremeError: the labelling reward is gone, or the training failed time and again.
    """
    versions = RewardVersions(config.run, tell)
    versions.begin()
    with closing(PairQueue(config.run.dir, config.run.follow, config.pairs)) as queue:
        async with open_reward_service(config.labels, log_folder=config.run.dir) as labels:
            if labels.description.needs_token_ids:
                raise UserError(f"the reward {labels.description.name} needs token ids, which a run's samples lack")
            await follow(config, queue, labels, versions)


async def follow(config: AdaptConfig, queue: PairQueue, labels: RewardScorer, versions: RewardVersions) -> None:
    """Label, and make versions, until these are enough or the run has ended.

    Raises:
        TriremeError: the labelling reward is gone, or the training failed time and again.
    """
    while versions.number < config.run.num_versions or not config.run.num_versions:
        has_ended = (config.run.follow / run_folder.SUMMARY_FILE).exists() and not run_folder.is_held(config.run.follow)
        num_failed = queue.num_failed
        await queue.fill(labels)
        if queue.num_failed > num_failed:
            versions.tell(f"{queue.num_failed} prompts could not be labelled; the last: {queue.last_failure}")
        if queue.num_pairs - versions.num_pairs >= config.pairs.per_round:
            await versions.make(queue.newest(), num_pairs=queue.num_pairs)
        elif has_ended:
            versions.tell(f"the run in {config.run.follow} has ended")
            return
        else:
            await asyncio.sleep(config.run.poll_s)
