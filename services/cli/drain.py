"""Have a live run come to a good end."""

from services.cli.live_run import reached, run_parser


def main(argv: list[str]) -> int:
    """`trireme drain RUN`"""
    parser = run_parser(
        "drain",
        summary="Admit nothing more, train what still makes whole steps, checkpoint, and end the run with exit code 0.",
        example="runs/gsm8k",
    )
    arguments = parser.parse_args(argv)
    with reached(arguments) as client:
        client.drain()
    print(f"draining; `trireme status {arguments.run} --watch` shows it come to its end")
    return 0
