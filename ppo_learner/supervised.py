"""One rank of supervised training: from demonstrations to a policy that gives their tokens more probability.

It must not know rewards or rollouts. Invariant: as in `learner`, every public method is a collective with the same
arguments and the same result on every rank. The loss is the cross-entropy −mean log π over the step's trained tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ppo_learner import checkpoints
from ppo_learner.batching import Batch, batch_demonstrations, collate, plan_micro_batches
from ppo_learner.checkpoints import LearnerState
from ppo_learner.config import OptimizerConfig
from ppo_learner.engine import Engine, leave, prepare_deepspeed
from ppo_learner.metrics import Stopwatch, as_floats
from ppo_learner.models import load_policy
from ppo_learner.publishing import export_policy
from ppo_learner.ranks import join, seed_everything
from ppo_learner.schedule import learning_rate_factor
from ppo_learner.skip_counter import SkipCounter
from services.contracts.errors import UserError
from services.contracts.records import Demonstration, LearnerReport
from services.contracts.settings import ModelConfig


class SupervisedRank:
    """A process of the supervised learner.

    Args:
        learner: the section `learner`; what it says of reinforcement learning is not used.
        model: the section `model`.
        rank: this process, from 0.
        world_size: how many there are.
        master_address: host of rank 0.
        master_port: a free port there, where all ranks meet.
        seed: of whatever libraries draw.
        total_steps: learner steps of the whole run, for the learning rate's schedule.

    Raises:
        UserError: a model that cannot be read.
        DeadlineExceeded: not all ranks came in time.
    """

    def __init__(
        self,
        *,
        learner: OptimizerConfig,
        model: ModelConfig,
        rank: int,
        world_size: int,
        master_address: str,
        master_port: int,
        seed: int,
        total_steps: int,
    ) -> None:
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
        )
        seed_everything(seed)
        policy = load_policy(model, learner, temperature=1.0)
        self._language_model = policy.language_model
        self._policy = Engine(policy, learner, self._ranks)
        self._skips = SkipCounter(learner.max_nonfinite_steps)
        self._step = 0

    def step(self, demonstrations: Sequence[Demonstration]) -> LearnerReport:
        """One optimizer step on all demonstrations.

        Raises:
            UserError: no demonstration has a token to learn.
            NonFiniteStep: too many steps in a row were skipped for a gradient that is not finite.
        """
        clock = Stopwatch()
        batch = _trainable(demonstrations)
        lr = self._config.lr * learning_rate_factor(self._config, step=self._step, total_steps=self._total_steps)
        with clock.measure("train"):
            self._policy.train()
            loss = self._loss(batch, learn=True)
            update = self._policy.update(lr)
        self._skips.count({"policy": update})
        self._step += 1
        measured = {
            "loss": loss,
            "learning_rate": lr,
            "gradient_norm/policy": update.gradient_norm,
            "updates_skipped": float(not update.applied),
        } | clock.metrics(num_tokens=sum(batch.lengths))
        return LearnerReport(step=self._step, metrics=as_floats(measured))

    @torch.no_grad()
    def evaluate_loss(self, demonstrations: Sequence[Demonstration]) -> float:
        """The loss on other demonstrations, without learning them. Raises `UserError`."""
        return self._loss(_trainable(demonstrations), learn=False)

    def save(self, folder: Path) -> None:
        """Write all that a resumed run needs below `folder`, for the caller to commit. Raises `CheckpointError`."""
        with checkpoints.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._policy.save(folder / "policy")
            state = LearnerState(step=self._step, skipped_in_a_row=self._skips.in_a_row)
            checkpoints.save_state(folder, state, self._config, self._ranks)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, into a rank that has not trained yet. Raises `CheckpointError`."""
        checkpoints.check_layout(folder, self._config, self._ranks)
        self._policy.load(folder / "policy")
        state = checkpoints.load_state(folder, self._ranks)
        self._step = state.step
        self._skips.in_a_row = state.skipped_in_a_row

    def export(self, folder: Path) -> None:
        """Write policy and tokenizer in Hugging Face format."""
        export_policy(self._policy, self._language_model, self._model, self._ranks, folder)

    def close(self) -> None:
        """Leave the group; the rank is of no use afterwards."""
        self._policy.close()
        leave()

    def _loss(self, batch: Batch, *, learn: bool) -> float:
        """Mean −log π over all trained tokens of all ranks; its gradient is added if `learn`."""
        parts = plan_micro_batches(
            batch.lengths, max_tokens=self._config.max_tokens_per_micro_batch, num_ranks=self._ranks.world_size
        )[self._ranks.rank]
        total = torch.zeros(1, dtype=torch.float64)
        for number, part in enumerate(parts):
            logprobs, *_ = self._policy(collate(batch, part, self._ranks.device))
            loss = -logprobs.sum() / batch.num_actions
            if learn:
                self._policy.backward(loss, last=number == len(parts) - 1)
            total += loss.detach().cpu()
        return float(self._ranks.sum(total))


def _trainable(demonstrations: Sequence[Demonstration]) -> Batch:
    batch = batch_demonstrations(demonstrations)
    if not batch.num_actions:
        raise UserError(
            f"none of {len(demonstrations)} demonstrations has a token to learn; look at data.response_field"
        )
    return batch
