"""The settings of the rollout workers, and the environment that their processes need.

It must not import torch or vLLM: the controller reads it, and the environment must be complete before vLLM is imported.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rollout_workers.environment_config import EnvironmentConfig
from services.contracts.records import Sampling
from services.contracts.settings import Section


class RolloutConfig(Section):
    """How many rollout workers there are, what each may use, and how they sample."""

    num_workers: int = Field(default=1, ge=1)
    """Rollout workers to begin with, each a process with an engine and a copy of the model."""
    min_workers: int = Field(default=1, ge=1)
    """Fewest workers that `trireme scale` and the autoscaler may ask for."""
    max_workers: int = Field(default=8, ge=1)
    """Most workers that `trireme scale` and the autoscaler may ask for."""
    samples_per_prompt: int = Field(default=8, ge=1)
    """Completions of each prompt; together they are one group."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the most likely tokens whose probabilities reach this sum; 1 leaves all in."""
    top_k: int = Field(default=0, ge=0)
    """Sample among so many of the most likely tokens; 0 leaves all in."""
    max_completion_tokens: int = Field(default=512, ge=1)
    """Longest completion, in tokens; a longer one ends there, with the finish reason "length"."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a completion and are cut from it, beside the model's own end of sequence."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion, beside the model's own end of sequence."""
    environment: EnvironmentConfig | None = None
    """Who answers the policy between its turns, such as a tool; without it each completion is one piece."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores of one worker, and threads of its engine."""
    gpus_per_worker: int = Field(default=0, ge=0)
    """GPUs of one worker; 0 runs the engine on the CPU."""
    colocate: bool = False
    """One worker and one learner rank on the same GPU: the worker sleeps, its memory free, while the rank trains."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Slices into which one worker's model is cut, each on a GPU of its own."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Keys and values that one worker on a CPU can hold, in GiB; bounds how many completions run at once."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of each GPU's memory that a worker takes for weights, keys and values."""
    max_concurrent_sequences: int = Field(default=256, ge=1)
    """Completions that one worker samples at once; further ones wait in it."""
    max_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one forward pass of the engine; its own choice where it is not given."""
    block_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one block of the key and value cache, the unit in which samples share a prompt; the engine's choice."""
    enforce_eager: bool = False
    """Run the model as it is on a GPU, without captured graphs: starts sooner, samples slower. A CPU always does."""
    enable_prefix_caching: bool = True
    """Compute a prompt once for all of its samples, and a shared beginning once for all prompts of a version."""
    sample_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait for one group, in seconds, from its order to its last token."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait until a worker has loaded the model, in seconds."""
    sync_timeout_s: float = Field(default=300.0, gt=0)
    """Longest wait until a worker serves a new version of the weights, in seconds."""
    on_new_weights: Literal["recompute", "keep"] = "recompute"
    """What becomes of the keys and values of completions under way when new weights load: computed anew, so that every
    token has exactly the logprob that its version gives it, or kept, which is faster, and then not exactly so."""
    max_groups_per_worker: int | None = Field(default=None, ge=1)
    """Most groups that one worker holds; more wait for whoever has room first. By default a quarter more than what
    max_concurrent_sequences lets it sample at once."""
    health_interval_s: float = Field(default=2.0, gt=0)
    """Pause after each probe that a worker answered, in seconds; a probe is a step of a busy engine, or a token."""
    health_timeout_s: float = Field(default=5.0, gt=0)
    """Longest wait for that step, in seconds; more than the longest step or load of the engine."""
    max_missed_probes: int = Field(default=3, ge=1)
    """Probes missed in a row after which a worker is killed and replaced."""
    max_restarts: int = Field(default=10, ge=0)
    """Lost workers that are replaced within restart_window_s; after that the run goes on with fewer."""
    restart_window_s: float = Field(default=3600.0, gt=0)
    """Time over which max_restarts counts, in seconds."""
    max_losses_per_prompt: int = Field(default=5, ge=1)
    """Workers that may be lost while they sample one prompt; then that prompt is what kills them, and the run stops."""
    drain_timeout_s: float = Field(default=10.0, ge=0)
    """How long a worker that is scaled away may go on with its groups, in seconds; the rest goes to other workers."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"temperature 0 gives {self.samples_per_prompt} times the same completion; set samples_per_prompt to 1 "
                "or raise the temperature"
            )
        if not self.min_workers <= self.num_workers <= self.max_workers:
            raise ValueError(
                f"num_workers {self.num_workers} must lie between min_workers {self.min_workers} and max_workers "
                f"{self.max_workers}; change one of them"
            )
        if self.gpus_per_worker and self.tensor_parallel_size > self.gpus_per_worker:
            raise ValueError(
                f"tensor_parallel_size is {self.tensor_parallel_size} and gpus_per_worker {self.gpus_per_worker}; each "
                "slice needs a GPU of its own"
            )
        if self.colocate and (self.num_workers, self.gpus_per_worker) != (1, 1):
            raise ValueError(
                f"colocate puts one worker and one learner rank on one GPU, and num_workers is {self.num_workers}, "
                f"gpus_per_worker {self.gpus_per_worker}; set both to 1, or colocate to false"
            )
        return self

    @property
    def groups_at_once(self) -> int:
        """Most groups that one worker holds, the default resolved: a margin hides the way to it and back."""
        full = -(-self.max_concurrent_sequences // self.samples_per_prompt)
        return self.max_groups_per_worker or full + -(-full // 4)

    def to_sampling(self, *, seed: int) -> Sampling:
        """The part of these settings that travels with each request."""
        return Sampling(
            num_samples=self.samples_per_prompt,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_completion_tokens=self.max_completion_tokens,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            seed=seed,
        )


def engine_environment(rollout: RolloutConfig, *, cuda: bool) -> dict[str, str]:
    """Variables that must be set in a worker's process before vLLM is imported there.

    The engine runs inside the worker's own process, so that weights load between two of its steps and no process is
    left behind when the worker is killed.
    """
    common = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if cuda:
        # Triton's attention, which float32 models get, would else multiply in TF32: 1e-4 to 1e-3 off in logprob.
        return common | {"TRITON_F32_DEFAULT": "ieee"}
    return common | {
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": str(rollout.cpus_per_worker),
        # Bound to cores by itself, every worker of a machine would take the same ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
