"""What every command on a live run shares: how the run is named, and how its control service is reached.

It must not know what is asked of the run, and loads neither torch nor Ray, so that an operator is answered at once.
"""

import argparse
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.contracts.errors import UserError
from services.transport.control_client import TOKEN_VARIABLE, ControlClient, connect, find_run

RUN_HELP = "the run's folder (run.dir) on its own machine, or the HOST:PORT of its control.address"


def run_parser(command: str, *, summary: str, example: str, timeout_s: float = 10.0) -> argparse.ArgumentParser:
    """A parser that knows RUN and how to reach it; `example` is what a user would type after `trireme`."""
    parser = argparse.ArgumentParser(
        prog=f"trireme {command}", description=summary, epilog=f"example: trireme {command} {example}"
    )
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with the token in the run's control.json, for HOST:PORT (default: the variable {TOKEN_VARIABLE})",
    )
    parser.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="PEM certificate that vouches for the run's, for HOST:PORT"
    )
    parser.add_argument(
        "--timeout-s",
        type=seconds,
        default=timeout_s,
        metavar="SECONDS",
        help="longest wait for the answer (default: %(default)g)",
    )
    return parser


def seconds(text: str) -> float:
    """A time to wait, for argparse."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is no time to wait; give seconds above 0")
    return value


@contextmanager
def reached(arguments: argparse.Namespace) -> Iterator[ControlClient]:
    """The run that the arguments name.

    Raises:
        UserError: when there is no such run, it is not live, or its token is missing.
    """
    token, token_from = _token(arguments.token_file)
    run = find_run(arguments.run, token=token, token_from=token_from, ca_file=arguments.ca_file)
    with connect(run, timeout_s=arguments.timeout_s) as client:
        yield client


def _token(file: Path | None) -> tuple[str | None, str]:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    try:
        return file.read_text().strip(), str(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {file} cannot be read: {error}") from error
