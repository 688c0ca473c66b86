"""One rank of the learner: from scored groups to better weights.

It must not know who started it, where groups come from or who serves the weights. Invariant: every public method is a
collective. All ranks call it with the same arguments in the same order and return the same, but for the publication,
which only rank 0 returns.

    groups ─▶ batch ─▶ evaluate ─▶ rewards, advantages ─▶ updates ─▶ report
              (batching)  (networks)     (experience)       (updates)   (metrics)
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from ppo_learner import checkpoints
from ppo_learner.batching import Batch, batch_rollouts
from ppo_learner.checkpoints import LearnerState
from ppo_learner.config import LearnerConfig
from ppo_learner.engine import leave, prepare_deepspeed
from ppo_learner.experience import Evaluation, make_experience
from ppo_learner.kl import next_kl_coefficient
from ppo_learner.metrics import (
    PolicyAtStart,
    Stopwatch,
    as_floats,
    experience_metrics,
    group_metrics,
    importance_metrics,
    mix_metrics,
    peak_memory_bytes,
    rate_metrics,
    trace_metrics,
)
from ppo_learner.mixing import learnt
from ppo_learner.networks import Networks
from ppo_learner.overlong import learnt_completions, overlong_metrics
from ppo_learner.publishing import default_canary, export_network, make_transport, publish_policy
from ppo_learner.ranks import join, seed_everything
from ppo_learner.return_moments import ReturnMoments
from ppo_learner.schedule import learning_rate_factor
from ppo_learner.updates import Rates, Trace, Updater
from services.contracts.errors import UserError
from services.contracts.records import LearnerReport, Publication, ScoredGroup, WeightedDemonstrations
from services.contracts.settings import ModelConfig


class LearnerRank:
    """A process of the learner.

    Args:
        learner: the section `learner`.
        model: the section `model`.
        transport: name of the weight transport that `publish` uses.
        rank: this process, from 0.
        world_size: how many there are.
        master_address: host of rank 0.
        master_port: a free port there, where all ranks meet.
        seed: orders the mini-batches.
        temperature: the sampling temperature; trained logprobs are those of the distribution sampled.
        total_steps: learner steps of the whole run, for the learning rate's schedule.
        weights_folder: where a transport of files puts them; by default in the memory of rank 0's machine.
        canary_sequences: token ids by which workers verify new weights; a few fixed ones by default.

    Raises:
        UserError: a model that cannot be read, or a temperature that samples nothing.
        DeadlineExceeded: not all ranks came in time.
    """

    def __init__(
        self,
        *,
        learner: LearnerConfig,
        model: ModelConfig,
        transport: str,
        rank: int,
        world_size: int,
        master_address: str,
        master_port: int,
        seed: int,
        temperature: float,
        total_steps: int,
        weights_folder: Path | None = None,
        canary_sequences: tuple[array[int], ...] | None = None,
    ) -> None:
        if temperature <= 0:
            raise UserError(f"rollout.temperature {temperature} samples one answer only; RL needs one above 0")
        self._config = learner
        self._model = model
        self._total_steps = total_steps
        prepare_deepspeed()
        self._ranks = join(
            rank=rank,
            world_size=world_size,
            master_address=master_address,
            master_port=master_port,
            timeout_s=learner.collective_timeout_s,
            num_sharing=learner.sequence_parallel,
        )
        with ExitStack() as on_failure:
            on_failure.callback(leave)
            self._transport = make_transport(transport, self._ranks, host=master_address, folder=weights_folder)
            seed_everything(seed)
            self._networks = Networks(learner, model, self._ranks, temperature=temperature)
            on_failure.pop_all()
        self._updater = Updater(self._networks, learner, self._ranks, seed=seed)
        self._canary_sequences = canary_sequences or default_canary(self._networks.language_model.config.vocab_size)
        self._kl_coefficient = learner.kl_coefficient
        self._return_moments = ReturnMoments()
        self._step = 0

    def step(
        self, groups: Sequence[ScoredGroup], demonstrations: WeightedDemonstrations | None = None
    ) -> LearnerReport:
        """One learner step on whole groups, and on demonstrations beside them.

        Raises:
            UserError: a group too small for the algorithm, or no token to learn from at all.
            NonFiniteStep: too many updates in a row were skipped for a gradient that is not finite.
        """
        clock = Stopwatch()
        rates = self._rates()
        beside = learnt(demonstrations, trained_policy=rates.train_policy)
        with clock.measure("batch"):
            batch = _nonempty(batch_rollouts(groups, learnt=learnt_completions(groups, self._config)))
        with clock.measure("evaluate"):
            evaluation = self._networks.evaluate(batch, logprobs=self._needs_logprobs(rates))
        with clock.measure("advantages"):
            experience = make_experience(
                groups,
                batch,
                evaluation,
                self._config,
                version=self._step,
                kl_coefficient=self._kl_coefficient,
                return_moments=self._return_moments,
            )
        self._take_scale(experience.return_moments)
        with clock.measure("train"):
            trace = self._updater.train(experience, rates, step=self._step, beside=beside)
            self._networks.policy.average()
        start = _policy_at_start(evaluation, trace)
        measured = (
            group_metrics(groups)
            | overlong_metrics(groups, self._config)
            | experience_metrics(experience, start)
            | importance_metrics(experience, start, self._config)
            | trace_metrics(trace, has_critic=self._config.parts.needs_critic, trained_policy=rates.train_policy)
            | rate_metrics(rates, has_critic=self._config.parts.needs_critic)
            | mix_metrics(demonstrations, trace)
            | clock.metrics(num_tokens=sum(batch.lengths) + (beside.num_tokens if beside else 0))
            | {"learner/memory_bytes": peak_memory_bytes(self._ranks)}
        )
        self._steer_kl(measured, num_completions=len(batch.lengths))
        self._step += 1
        return LearnerReport(step=self._step, metrics=as_floats(measured))

    def publish(self, version: int) -> Publication | None:
        """Make the present policy available to workers as `version`; rank 0 returns where."""
        return publish_policy(
            self._networks.policy,
            self._model,
            self._ranks,
            self._transport,
            version=version,
            canary_sequences=self._canary_sequences,
        )

    def save(self, folder: Path) -> None:
        """Write all that a resumed run needs below `folder`, for the caller to commit. Raises `CheckpointError`."""
        with checkpoints.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._networks.save(folder)
            state = LearnerState(
                step=self._step,
                kl_coefficient=self._kl_coefficient,
                skipped_in_a_row=self._updater.skips.in_a_row,
                return_moments=self._return_moments,
            )
            checkpoints.save_state(folder, state, self._ranks)

    def load(self, folder: Path) -> None:
        """Restore what any number of ranks saved, into a rank that has not trained yet. Raises `CheckpointError`."""
        state = checkpoints.load_state(folder, self._ranks)
        self._networks.load(folder)
        self._step = state.step
        if self._config.kl_target is not None and state.kl_coefficient > 0:  # Else nothing has steered it.
            self._kl_coefficient = state.kl_coefficient
        self._return_moments = state.return_moments
        self._updater.skips.in_a_row = state.skipped_in_a_row

    def export(self, folder: Path) -> None:
        """Write policy and tokenizer in Hugging Face format."""
        export_network(self._networks.policy, self._networks.language_model, self._model, self._ranks, folder)

    def close(self) -> None:
        """Leave the group; the rank is of no use afterwards."""
        self._networks.close()
        leave()

    def _rates(self) -> Rates:
        factor = learning_rate_factor(self._config, step=self._step, total_steps=self._total_steps)
        return Rates(
            lr=self._config.lr * factor,
            critic_lr=self._config.critic_lr * factor,
            kl_coefficient=self._kl_coefficient,
            train_policy=self._step >= self._config.critic_warmup_steps,
        )

    def _take_scale(self, moments: ReturnMoments) -> None:
        """From now on the critic speaks on this scale, and means what it meant; an untrained one says 0 on any."""
        before, self._return_moments = self._return_moments, moments
        if before.count and before != moments:
            self._networks.rescale_values(*before.rescaling(moments))

    def _needs_logprobs(self, rates: Rates) -> bool:
        """Whether the policy must be evaluated before it is trained.

        The first update's forward pass itself gives the policy at the step's start, of what it trains: of all with a
        single update, else of some completions, drawn at random, which is enough for metrics.
        """
        kl_in_reward = self._networks.has_reference and self._config.kl_placement == "reward"
        ratio_needs_them = self._config.updates_per_step > 1 and self._config.proximal in (None, "recomputed")
        some_may_be_left_out = self._config.kl_stop is not None
        return kl_in_reward or ratio_needs_them or some_may_be_left_out or not rates.train_policy

    def _steer_kl(self, measured: Mapping[str, float], *, num_completions: int) -> None:
        if "kl/completion" in measured:
            self._kl_coefficient = next_kl_coefficient(
                self._kl_coefficient,
                kl=measured["kl/completion"],
                target=self._config.kl_target,
                horizon=self._config.kl_horizon,
                num_completions=num_completions,
            )


def _policy_at_start(evaluation: Evaluation, trace: Trace) -> PolicyAtStart:
    """Of the whole batch where it was evaluated, else of what the first update trained."""
    if evaluation.logprobs is None:
        return PolicyAtStart(logprobs=trace.logprobs, known=trace.known)
    return PolicyAtStart(logprobs=evaluation.logprobs, known=torch.ones_like(trace.known))


def _nonempty(batch: Batch) -> Batch:
    if not batch.learnt_counts.any():
        raise UserError(
            f"none of the step's {len(batch.lengths)} rollouts has a sampled token to learn from; look at the prompts"
        )
    return batch
