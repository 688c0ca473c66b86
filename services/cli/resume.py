"""Have a paused run go on. (A run that has ended goes on with `trireme train run.yaml --resume`.)"""

from services.cli.live_run import reached, run_parser


def main(argv: list[str]) -> int:
    """`trireme resume RUN`"""
    parser = run_parser("resume", summary="Have a run go on after `trireme pause`.", example="runs/gsm8k")
    with reached(parser.parse_args(argv)) as client:
        client.resume()
    print("resumed")
    return 0
