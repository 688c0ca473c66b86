"""Write down completions of a model on the prompts of a data set, and the best of them as demonstrations."""

import asyncio
import time
from collections.abc import Sequence

from services.cli.arguments import load_config
from services.contracts.records import Json
from services.control import run_folder
from services.control.json_rows import write_rows
from services.control.parts import start_samplers, start_workers
from services.control.preflight import RunInputs, check_run
from services.control.sample_config import SampleRunConfig
from services.control.sampling import SampledGroup, sample_groups, write_completions
from services.control.selection import DEMONSTRATIONS_FILE, Selection, select


def main(argv: list[str]) -> int:
    """`trireme sample run.yaml [--section.key value ...]`: writes completions.jsonl into run.dir."""
    config = load_config(
        SampleRunConfig,
        argv,
        prog="trireme sample",
        summary="Sample rollout.samples_per_prompt completions of every prompt in data. With the section select, score "
        "them and write the best as demonstrations; without, no reward is asked.",
    )
    inputs = check_run(config)
    started = time.monotonic()
    with run_folder.hold(config.run.dir, resume=False):
        run_folder.write_config(config.run.dir, config)
        sampled = asyncio.run(_sample(config, inputs))
        path = write_completions(sampled, config.run.dir)
        num_samples = sum(len(one.group.rollouts) for one in sampled)
        print(f"{num_samples} completions of {len(sampled)} prompts, in {path}")
        summary: dict[str, Json] = {"num_samples": num_samples, "num_prompts": len(sampled)}
        if config.select is not None:
            summary |= _select(config, sampled).summary()
        run_folder.write_summary(config.run.dir, summary | {"seconds": time.monotonic() - started})
    return 0


async def _sample(config: SampleRunConfig, inputs: RunInputs) -> list[SampledGroup]:
    sampling = config.rollout.to_sampling(seed=config.run.seed)
    prompts = inputs.prompts.prompts
    if config.select is None:
        async with start_workers(config) as fleet:
            return await sample_groups(prompts, rollouts=fleet.pool, sampling=sampling)
    async with start_samplers(config) as parts:
        return await sample_groups(prompts, rollouts=parts.rollouts, sampling=sampling, rewards=parts.rewards)


def _select(config: SampleRunConfig, sampled: Sequence[SampledGroup]) -> Selection:
    """Write the demonstrations, and tell what became of the others."""
    assert config.select is not None
    selection = select(sampled, config.select, max_failed_prompts=config.train.max_failed_prompts)
    path = config.run.dir / DEMONSTRATIONS_FILE
    write_rows(path, [kept.to_row() for kept in selection.kept])
    print(
        f"{len(selection.kept)} of them kept, of {selection.num_prompts_kept} of {selection.num_prompts} prompts, in "
        f"{path}; left out:"
    )
    for reason, count in selection.dropped.items():
        print(f"  {count:8} {reason}")
    return selection
