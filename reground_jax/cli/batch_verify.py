"""`reground-jax batch-verify`: is an output of `batch` whole?"""

import argparse

from reground_jax.batch.store import open_store
from reground_jax.batch.verify import verify
from reground_jax.cli.progress import Bar, say

EXAMPLES = """\
example:
  reground-jax batch-verify images"""
SHOWN = 20  # problems, before the rest is counted only


def add(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "batch-verify",
        help="check an output of `batch`",
        description="Checks an output of `batch`: every id is there once for each setting, every "
        "image decodes, every checksum fits. Reads all of it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", metavar="DIR", help="the --out of `batch`")
    return parser


def run(arguments: argparse.Namespace) -> int:
    with Bar("verify", unit="unit", disable=None) as bar:
        report = verify(open_store(arguments.out), on_unit=bar.show)
    for problem in report.problems[:SHOWN]:
        say(problem)
    if len(report.problems) > SHOWN:
        say(f"and {len(report.problems) - SHOWN} more")
    state = f"{len(report.problems)} problems" if report.problems else "whole"
    print(f"{arguments.out}: {state}; {report.images} images in {report.units} units")
    return 1 if report.problems else 0
