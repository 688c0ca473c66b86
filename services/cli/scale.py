"""Give a live run another number of rollout workers."""

from services.cli.live_run import reached, run_parser
from services.contracts.errors import UserError

BANKS = ("rollout_workers",)


def main(argv: list[str]) -> int:
    """`trireme scale RUN rollout_workers NUMBER`"""
    parser = run_parser(
        "scale",
        summary="Have so many rollout workers from now on. New ones serve once they verified the weights; those too "
        "many end what they sample, then go.",
        example="runs/gsm8k rollout_workers 4",
    )
    parser.add_argument("bank", metavar="rollout_workers", help="what to have more or fewer of")
    parser.add_argument("number", type=int, metavar="NUMBER", help="how many to have")
    arguments = parser.parse_args(argv)
    if arguments.bank not in BANKS:
        raise UserError(
            f"a live run cannot scale {arguments.bank!r}, only {', '.join(BANKS)}; reward servers are started and "
            "stopped on their own, learner ranks change with --resume"
        )
    with reached(arguments) as client:
        client.scale(arguments.number)
    print(
        f"{arguments.number} rollout workers from now on; `trireme status {arguments.run}` shows who joins and drains"
    )
    return 0
