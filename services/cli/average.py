"""Average a trained model with the one that it was trained from."""

from services.cli.arguments import load_config
from services.contracts.records import Json
from services.control import run_folder
from services.control.averaging import AverageConfig, check_average, write_averages


def main(argv: list[str]) -> int:
    """`trireme average --start MODEL --end MODEL --alphas 0.5 --run.dir DIR`: writes models in Hugging Face format."""
    config = load_config(
        AverageConfig,
        argv,
        prog="trireme average",
        summary="Weights between two models, (1 - alpha) start + alpha end: gives back some of what training made a "
        "model forget, for some of what it learnt.",
    )
    inputs = check_average(config)
    folders = write_averages(config, inputs)
    for alpha, folder in zip(config.alphas, folders, strict=True):
        print(f"alpha {alpha:g}  {folder} (Hugging Face format, for transformers and vLLM)")
    written: dict[str, Json] = {f"{alpha:g}": str(folder) for alpha, folder in zip(config.alphas, folders, strict=True)}
    run_folder.write_summary(config.run.dir, {"start": config.start, "end": config.end, "averages": written})
    return 0
