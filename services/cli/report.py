"""Make curves and a one-file HTML report of a run."""

import argparse
from pathlib import Path

from services.control.report import CURVES_FILE, write_comparison, write_report


def main(argv: list[str]) -> int:
    """`trireme report RUN [RUN ...] [--output FILE]`: prints where the files lie."""
    parser = argparse.ArgumentParser(
        prog="trireme report", description="Curves and a one-file HTML report of a run; of several, also a comparison."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run (run.dir)")
    parser.add_argument(
        "--output", type=Path, default=Path("comparison.html"), help="where the comparison goes (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    for folder in arguments.runs:
        report = write_report(folder)
        print(f"report      {report}\ncurves      {folder / CURVES_FILE}")
    if len(arguments.runs) > 1:
        print(f"comparison  {write_comparison(arguments.runs, arguments.output)}")
    return 0
