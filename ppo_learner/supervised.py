"""One rank of supervised training, whatever is learnt from examples: a policy's tokens or a reward model's scores.

It must not know rewards, rollouts, nor what a task's examples are. Invariants: as in `learner`, every public method is
a collective with the same arguments and the same result on every rank; a loss is the mean over the terms of all
examples of all ranks, so no split of them changes it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppo_learner import checkpoints
from ppo_learner.checkpoints import LearnerState
from ppo_learner.descent import Descent, means, own_parts
from ppo_learner.engine import Engine, leave, prepare_deepspeed
from ppo_learner.metrics import Stopwatch, as_floats, peak_memory_bytes
from ppo_learner.moe import router_metrics
from ppo_learner.optimizer_config import OptimizerConfig
from ppo_learner.ranks import join, seed_everything
from ppo_learner.schedule import learning_rate_factor
from ppo_learner.skip_counter import SkipCounter
from ppo_learner.task import Part, Questions, Task, Work
from services.contracts.records import LearnerReport
from services.contracts.settings import ModelConfig


class SupervisedRank:
    """A process of the supervised learner.

    Args:
        task: what is learnt.
        learner: the section `learner`.
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
        task: type[Task],
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
        seed_everything(seed)
        self._task, self._network = self._take_up(task, learner, model)
        # New weights are the same on every rank; what dropout leaves out is not.
        seed_everything(seed + rank)
        self._skips = SkipCounter(learner.max_nonfinite_steps)
        self._step = 0

    def step(self, examples: Sequence[Any]) -> LearnerReport:  # Any: the task's own
        """One optimizer step on all examples.

        Raises:
            UserError: there is nothing to learn in them.
            NonFiniteStep: too many steps in a row were skipped for a gradient that is not finite.
        """
        clock = Stopwatch()
        work = self._task.work(examples)
        lr = self._config.lr * learning_rate_factor(self._config, step=self._step, total_steps=self._total_steps)
        with clock.measure("train"):
            self._network.train()
            metrics = self._means(work, learn=True)
            update = self._network.update(lr)
            self._network.average()
        self._skips.count({"policy": update})
        self._step += 1
        measured = {
            **metrics,
            "learning_rate": lr,
            "gradient_norm/policy": update.gradient_norm,
            **{f"gradient_norm/policy/{kind}": norm for kind, norm in update.norms.items()},
            "updates_skipped": float(not update.applied),
            "learner/memory_bytes": peak_memory_bytes(self._ranks),
        } | clock.metrics(num_tokens=work.num_tokens)
        return LearnerReport(step=self._step, metrics=as_floats(measured))

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Any]) -> dict[str, float]:  # Any: the task's own
        """The metrics on other examples, without learning them. Raises `UserError`."""
        self._network.train(False)
        return self._means(self._task.work(examples), learn=False)

    @torch.no_grad()
    def answers(self, examples: Sequence[Any]) -> list[float]:  # Any: the task's own
        """What the network says of each example's tokens or texts, in order. Raises `UserError`."""
        self._network.train(False)
        return self._answers(self._task.work(examples)).tolist()

    def save(self, folder: Path) -> None:
        """Write all that a resumed run needs below `folder`, for the caller to commit. Raises `CheckpointError`."""
        with checkpoints.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._network.save(folder / "policy")
            state = LearnerState(step=self._step, skipped_in_a_row=self._skips.in_a_row)
            checkpoints.save_state(folder, state, self._ranks)

    def load(self, folder: Path) -> None:
        """Restore what any number of ranks saved, into a rank that has not trained yet. Raises `CheckpointError`."""
        state = checkpoints.load_state(folder, self._ranks)
        self._network.load(folder / "policy")
        self._step = state.step
        self._skips.in_a_row = state.skipped_in_a_row

    def export(self, folder: Path) -> None:
        """Write the network and its tokenizer in Hugging Face format."""
        self._task.export(self._network, self._ranks, folder)

    def read(self, model: ModelConfig, learner: OptimizerConfig) -> None:
        """Give up what was trained, and take up the weights of another model. Raises `UserError`."""
        self._network.close()
        self._task, self._network = self._take_up(type(self._task), learner, model)

    def close(self) -> None:
        """Leave the group; the rank is of no use afterwards."""
        self._network.close()
        leave()

    def _take_up(self, kind: type[Task], learner: OptimizerConfig, model: ModelConfig) -> tuple[Task, Engine]:
        task = kind(learner, model, self._ranks)
        network = Engine(task.network, learner, self._ranks)
        task.lay_out(network)
        return task, network

    def _means(self, work: Work, *, learn: bool) -> dict[str, float]:
        """The metrics over all terms of all ranks; the gradient is added if `learn`."""
        work.prepare(self._answers)
        descent = Descent(router_loss_coefficient=self._task.router_loss_coefficient) if learn else None
        own, routing = means(work, self._parts(work), self._network, self._ranks, descent)
        metrics = dict(zip(self._task.metrics, self._ranks.sum_shares(own).tolist(), strict=True))
        return metrics | (router_metrics(self._ranks.sum(routing)) if routing is not None else {})

    @torch.no_grad()
    def _answers(self, questions: Questions) -> Tensor:
        """All answers, of every rank."""
        column = torch.zeros(questions.num_answers, device=self._ranks.device)
        for part in self._parts(questions):
            values, places, _ = questions.answer(self._network, part, self._ranks.device)
            column[places] = values
        return self._ranks.sum_shares(column)

    def _parts(self, questions: Questions) -> list[Part]:
        return own_parts(questions, self._ranks, max_tokens=self._config.max_tokens_per_pass)
