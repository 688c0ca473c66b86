"""Loads an exported model in transformers and in vLLM and fails unless both give the same logprobs.

Run as a program, because vLLM reads its environment at import: python -m tests.end_to_end.same_logprobs FOLDER
"""

import os
import sys

from rollout_workers.config import RolloutConfig, engine_environment

TOKENS = [5, 9, 17, 3, 22, 8, 30, 11]
TOLERANCE = 1e-4


def main(folder: str) -> int:
    os.environ.update(engine_environment(RolloutConfig(), cuda=False) | {"VLLM_CPU_KVCACHE_SPACE": "1"})
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([TOKENS])).logits[0]
    expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]
    engine = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=64, disable_log_stats=True)
    output = engine.generate(
        {"prompt_token_ids": TOKENS}, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False
    )[0]
    assert output.prompt_logprobs is not None
    found = [output.prompt_logprobs[i][token].logprob for i, token in enumerate(TOKENS) if i > 0]
    difference = (torch.tensor(found) - expected).abs().max().item()
    print(f"largest logprob difference: {difference:.2e}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
