"""Have a live run commit a checkpoint now."""

from services.cli.live_run import reached, run_parser
from services.control.visible_text import visible


def main(argv: list[str]) -> int:
    """`trireme checkpoint RUN`: prints the checkpoint's folder."""
    parser = run_parser(
        "checkpoint",
        summary="Commit the newest whole step, and print the checkpoint's folder on the run's machine.",
        example="runs/gsm8k",
        timeout_s=600.0,
    )
    with reached(parser.parse_args(argv)) as client:
        print(visible(client.checkpoint()))
    return 0
