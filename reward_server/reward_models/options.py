"""How a reward model is served: the options of the built-in reward `reward_model`.

It must not import torch, nor look into the model's folder.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from reward_server.reward_models.reading import Aggregate
from services.contracts.settings import Section


class RewardModelOptions(Section):
    """Scores with a reward model that `trireme reward-model` made."""

    path: Path
    """The model's folder, or a symbolic link to it; when another model stands there, that is served."""
    name: str = Field(default="reward_model", pattern=r"^[A-Za-z0-9_]+$")
    """What the reward is called in metrics; each of several models in one total needs a name of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights and of the forward pass."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1; auto takes a GPU where there is one."""
    num_threads: int | None = Field(default=None, ge=1)
    """Cores of a forward pass on the CPU; torch's own choice, usually all, where it is not given."""
    max_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens in one forward pass, padding included; a longer single text has a pass of its own."""
    aggregate: Aggregate = "min"
    """A process head's value of a completion by its steps' scores: min, mean, last; product multiplies the
    probabilities (the logistic of the raw scores) that the steps are right."""
    minimum: float | None = Field(default=None, allow_inf_nan=False)
    """Smallest value served; lower ones are raised to it. The reward declares no lower bound where it is not given."""
    maximum: float | None = Field(default=None, allow_inf_nan=False)
    """Largest value served; higher ones are lowered to it."""
    reload_every_s: float = Field(default=1.0, ge=0)
    """How often to look whether another model stands at `path`, in seconds; 0 for never."""
    canary_tolerance: float = Field(default=0.1, gt=0)
    """Largest difference to the scores that the trainer wrote beside the model, in standard deviations of its scores;
    a model that differs by more is not served."""

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise ValueError(f"minimum is {self.minimum:g}, not below maximum ({self.maximum:g})")
        return self

    def clip(self, value: float) -> float:
        """The value within the bounds."""
        low = value if self.minimum is None else max(value, self.minimum)
        return low if self.maximum is None else min(low, self.maximum)
