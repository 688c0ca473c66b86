"""Have a live run hold still."""

from services.cli.live_run import reached, run_parser


def main(argv: list[str]) -> int:
    """`trireme pause RUN`"""
    parser = run_parser(
        "pause",
        summary="Admit and train nothing more until `trireme resume`. What is under way comes to its end.",
        example="runs/gsm8k",
    )
    arguments = parser.parse_args(argv)
    with reached(arguments) as client:
        client.pause()
    print(f"paused; `trireme resume {arguments.run}` goes on")
    return 0
