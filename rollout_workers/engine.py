"""The sampling engine: vLLM inside this process, driven step by step by one thread.

With `weight_loader` and `weight_transfer` the only file that knows vLLM. It must not know workers, groups, asyncio or
how weights travel.
Invariants: a token carries the version of the weights that sampled it and the logprob of the distribution that it was
drawn from; keys and values of older weights are never read, unless completions under way are to keep their own; nothing
sampled under new weights leaves the engine before their canary agreed.
"""

from __future__ import annotations

import copy
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm import EngineArgs, SamplingParams
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from rollout_workers.canary import check_canary
from rollout_workers.config import RolloutConfig
from rollout_workers.weight_transfer import EXTENSION, pull_weights
from services.contracts.errors import UserError, VersionMismatch, WeightSyncError
from services.contracts.records import FinishReason, Sampling, WeightManifest
from services.contracts.settings import ModelConfig
from services.transport.device_weights import Pull

_FIRST = -1
"""Priority of canaries; everything else has 0."""
_CANARY_SLOTS = 1
"""Sequences that vLLM has room for beside all completions: priority takes no slot from one that runs."""
_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
"""vLLM's other reasons are failures of its own, and end the engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What was sampled after one prompt: (T,) token ids, logprobs and policy versions, and the text."""

    order: str
    token_ids: array[int]
    logprobs: array[float]
    policy_versions: array[int]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A load that passed: the canary's mean difference, and the seconds of load and check, when nothing else ran."""

    canary_error: float
    load_s: float
    verify_s: float


class Engine:
    """vLLM with a model. Call it from one thread only.

    Args:
        repack_tied_head: see `weight_loader.repack`; False only in the test that shows why.

    Raises:
        UserError: vLLM refuses the model or the settings, or is the build for other devices.
    """

    def __init__(self, model: ModelConfig, rollout: RolloutConfig, *, repack_tied_head: bool = True) -> None:
        _check_build(rollout, for_cpu=current_platform.is_cpu())
        try:
            self._llm = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(model, rollout)))
        except (ValueError, OSError, VLLMError) as error:
            raise UserError(f"vLLM cannot serve {model.path!r} with these settings: {error}") from error
        self.max_length = int(self._llm.model_config.max_model_len)
        self.version = 0
        self.generation = 0
        self.refusal: str | None = None
        self._llm.set_weight_version("0")
        self._repack_tied_head = repack_tied_head
        self._recomputes = rollout.on_new_weights == "recompute"
        self._num_canaries = 0
        self._held: list[Completion] = []
        self.asleep = False

    @property
    def tokenizer(self) -> Any:  # Any: transformers is untyped
        """A copy of the model's, which may be used in another thread."""
        return copy.deepcopy(self._llm.get_tokenizer())

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do or to give."""
        return bool(self._held) or (not self.asleep and self._llm.has_unfinished_requests())

    def add(self, order: str, token_ids: Sequence[int], sampling: Sampling, *, seed: int) -> None:
        """Order one completion, by a name of the caller. `num_samples` and `seed` of `sampling` are not read.

        Raises:
            WeightSyncError: the weights that are loaded may not be served.
            UserError: the prompt leaves no room for a token, or vLLM refuses it or the sampling settings.
        """
        if self.refusal is not None:
            raise WeightSyncError(self.refusal)
        room = self.max_length - len(token_ids)
        if room < 1:
            raise UserError(
                f"the prompt of {order} has {len(token_ids)} tokens and the model takes {self.max_length} with the "
                "completion; shorten it (data.max_prompt_tokens, data.long_prompts) or raise model.max_length"
            )
        try:
            self._add(order, token_ids, _sampling_params(sampling, room, seed))
        except (ValueError, VLLMClientError) as error:
            raise UserError(f"vLLM refuses to sample {order}: {error}") from error

    def abort(self, orders: Sequence[str]) -> None:
        """Forget completions that were ordered; unknown ones are ignored."""
        self._llm.abort_request(list(orders))
        self._held = [completion for completion in self._held if completion.order not in orders]

    def step(self) -> list[Completion]:
        """Sample one token for each running completion; returns those that ended."""
        finished, self._held = self._held, []
        return finished + [self._completion(output) for output in self._llm.step()]

    def refuse(self, reason: str) -> None:
        """Take no orders until a version was loaded and checked."""
        self.refusal = reason

    def sleep(self) -> None:
        """Give up the GPU's memory until the next `load`; completions under way wait, computed anew then."""
        if not self.asleep:
            self._llm.reset_prefix_cache(reset_running_requests=True)
            # Level 1 keeps the weights, in host memory: what is served before the next load must be right as well.
            self._llm.sleep(level=1, mode="keep")
            self.asleep = True

    def load(self, manifest: WeightManifest, weights: Sequence[memoryview] | Pull) -> Loaded:
        """Load and check a version, between two steps. Running completions go on with it from their next token.

        Args:
            weights: buckets that were fetched, or the order to fetch them. An engine that sleeps wakes up.

        Raises:
            VersionMismatch: the version is older than the one served; nothing changes.
            WeightSyncError: the weights do not fit the model.
            CanaryMismatch: the loaded model is not the learner's.
            After the last two every order is forgotten, and the engine refuses new ones until a load succeeds.
        """
        if manifest.age < (self.generation, self.version):
            raise VersionMismatch(
                f"version {manifest.version} of generation {manifest.generation} was published before version "
                f"{self.version} of generation {self.generation}, which is served; publish versions in rising order"
            )
        before = self.generation, self.version
        self.generation, self.version = manifest.age
        try:
            loaded = self._load_and_check(manifest, weights)
        except WeightSyncError as error:
            self.generation, self.version = before
            self._forget_all()
            self.refuse(f"nothing is served since a load failed: {error}")
            raise
        self.refusal = None
        return loaded

    def _load_and_check(self, manifest: WeightManifest, weights: Sequence[memoryview] | Pull) -> Loaded:
        started = time.monotonic()
        if self._recomputes:
            # So that no completion goes on from keys and values of the old weights.
            self._llm.reset_prefix_cache(reset_running_requests=True)
        self._put(manifest, weights)
        self._llm.set_weight_version(str(manifest.version))
        loaded = time.monotonic()
        found = self.prompt_logprobs([list(sequence) for sequence in manifest.canary.sequences])
        error = check_canary(manifest.canary, found, version=manifest.version)
        return Loaded(canary_error=error, load_s=loaded - started, verify_s=time.monotonic() - loaded)

    def _put(self, manifest: WeightManifest, weights: Sequence[memoryview] | Pull) -> None:
        if self.asleep:
            # Keys and values come back last, when a learner on the same GPU may have let go of the buckets.
            self._llm.wake_up(["weights"])
        try:
            if isinstance(weights, Pull):
                pull_weights(self._llm, weights)
            else:
                arrays = [np.frombuffer(bucket, np.uint8) for bucket in weights]
                self._llm.collective_rpc("load_packed_weights", args=(manifest, arrays, self._repack_tied_head))
        finally:
            if self.asleep:
                self._llm.wake_up(["kv_cache"])
                self.asleep = False

    def prompt_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Logprobs (T - 1,) of tokens 1 … T-1 of each sequence. What ends meanwhile is held for the next `step`.

        No completion has to end for it, also where as many run as may.
        """
        orders = []
        for sequence in sequences:
            self._num_canaries += 1
            orders.append(f"canary {self._num_canaries}")
            params = SamplingParams(
                max_tokens=1,
                prompt_logprobs=0,
                temperature=0.0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._add(orders[-1], sequence, params, priority=_FIRST)
        found: dict[str, list[float]] = {}
        with self._canary_slots():
            while len(found) < len(orders):
                for output in self._llm.step():
                    if output.request_id in orders:
                        found[output.request_id] = output.prompt_logprobs.logprobs
                    else:
                        self._held.append(self._completion(output))
        return [found[order] for order in orders]

    @contextmanager
    def _canary_slots(self) -> Iterator[None]:
        """Let more sequences run: canaries, as they go before completions that wait."""
        scheduler = self._llm.engine_core.engine_core.scheduler
        scheduler.max_num_active_reqs += _CANARY_SLOTS
        try:
            yield
        finally:
            scheduler.max_num_active_reqs -= _CANARY_SLOTS

    def close(self) -> None:
        """Free the model and its memory."""
        self._llm.engine_core.shutdown()

    def _add(self, order: str, token_ids: Sequence[int], params: SamplingParams, priority: int = 0) -> None:
        prompt = tokens_input(list(token_ids), cache_salt=f"{self.generation}.{self.version}")
        self._llm.add_request(order, prompt, params, priority=priority)

    def _completion(self, output: Any) -> Completion:  # Any: vLLM's untyped output
        (sampled,) = output.outputs
        versions = array("i")
        for span in sampled.weight_versions:
            versions.extend([int(span.version)] * (span.end - span.start))
        reason = _FINISH_REASONS[sampled.finish_reason]
        # With stop texts there is a text, which is empty as well where nothing stood before the one that came.
        has_text = bool(sampled.text) or isinstance(sampled.stop_reason, str)
        return Completion(
            order=output.request_id,
            token_ids=array("i", sampled.token_ids),
            logprobs=array("f", sampled.logprobs.logprobs),
            policy_versions=versions,
            text=sampled.text if has_text else self._decode(sampled.token_ids, ended_by_token=reason == "stop"),
            finish_reason=reason,
        )

    def _decode(self, token_ids: Sequence[int], *, ended_by_token: bool) -> str:
        """The text at once, which costs a fraction of what vLLM takes to make it token by token for stop texts."""
        kept = token_ids[:-1] if ended_by_token else token_ids
        return str(self._llm.get_tokenizer().decode(kept, skip_special_tokens=True))

    def _forget_all(self) -> None:
        self._held = []
        self._llm.abort_request(list(self._llm.output_processor.request_states), internal=True)


def _check_build(rollout: RolloutConfig, *, for_cpu: bool) -> None:
    """Each build of vLLM knows one kind of device, and would take it whatever the settings say."""
    if for_cpu == bool(rollout.gpus_per_worker):
        builds = ("CPUs", "gpu") if for_cpu else ("GPUs", "cpu")
        raise UserError(
            f"rollout.gpus_per_worker is {rollout.gpus_per_worker} and the installed vLLM is built for {builds[0]}; "
            f"set it to {0 if for_cpu else 1}, or pip install 'trireme-rlhf[{builds[1]}]' in an environment of its own"
        )


def _sampling_params(sampling: Sampling, room: int, seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=min(sampling.max_completion_tokens, room),
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        seed=seed,
        logprobs=0,
        detokenize=bool(sampling.stop),
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def engine_arguments(model: ModelConfig, rollout: RolloutConfig) -> dict[str, Any]:  # Any: `EngineArgs` has all types
    """The engine as keyword arguments of vLLM, so that a benchmark can run the very same engine without this class."""
    on_cpu = current_platform.is_cpu()
    return {
        "model": model.path,
        "revision": model.revision,
        "tokenizer": model.tokenizer,
        # Else vLLM would look for the model's revision in the tokenizer's repository; this is the hub's default branch.
        "tokenizer_revision": "main" if model.tokenizer else model.revision,
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "max_model_len": model.max_length,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        "enforce_eager": on_cpu or rollout.enforce_eager,
        "enable_sleep_mode": rollout.colocate and not on_cpu,
        "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30) if on_cpu else None,
        "gpu_memory_utilization": rollout.gpu_memory_utilization,
        "max_num_seqs": rollout.max_concurrent_sequences + _CANARY_SLOTS,
        "max_num_active_seqs": rollout.max_concurrent_sequences,
        "max_num_batched_tokens": rollout.max_batched_tokens,
        # On a CPU vLLM cannot take back the draw of a seeded sequence whose prompt came in two pieces, and dies of it.
        "enable_chunked_prefill": False if on_cpu else None,
        "block_size": rollout.block_tokens,
        "enable_prefix_caching": rollout.enable_prefix_caching,
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": EXTENSION,
        # Canaries go before completions that were preempted for the load that they check.
        "scheduling_policy": "priority",
        # A step in flight during a load would sample tokens of two versions at once.
        "async_scheduling": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
