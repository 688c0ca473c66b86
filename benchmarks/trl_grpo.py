"""The other side of `end_to_end`: TRL's GRPOTrainer for some steps; prints its step times as one JSON line.

python -m benchmarks.trl_grpo FOLDER NUM_STEPS MICRO_BATCH
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.reference_task import MAX_COMPLETION_TOKENS, NUM_PROMPTS, NUM_SAMPLES


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step, sampling included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.monotonic() - self._began)


def share_of_vowels(completions: list[str], **_: Any) -> list[float]:
    return [sum(character in "aeiou" for character in text) / max(1, len(text)) for text in completions]


def main(folder: Path, num_steps: int, micro_batch: int) -> None:
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    times = StepTimes()
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=share_of_vowels,
        train_dataset=Dataset.from_list(rows),
        callbacks=[times],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=NUM_PROMPTS * NUM_SAMPLES // micro_batch,
            num_generations=NUM_SAMPLES,
            max_completion_length=MAX_COMPLETION_TOKENS,
            max_steps=num_steps,
            learning_rate=1e-6,
            temperature=1.0,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        ),
    )
    trainer.train()
    lengths = [
        entry["completions/mean_length"] for entry in trainer.state.log_history if "completions/mean_length" in entry
    ]
    print(json.dumps({"step_seconds": times.seconds, "completion_tokens": sum(lengths) / len(lengths)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
