"""`reground-jax batch-verify`: is an output of `batch` complete and undamaged?"""

import argparse
import json

from reground_jax.basics.wording import plural
from reground_jax.batch.store import Store, open_store
from reground_jax.batch.verify import Report, repair, verify
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import Bar, say

EXAMPLES = """\
examples:
  reground-jax batch-verify images
  reground-jax batch-verify images --repair
      drops what is damaged; the same `batch` command then makes it again"""
SHOWN = 20  # problems; the rest is only counted


def add(commands) -> Parser:
    parser = commands.add_parser(
        "batch-verify",
        help="check an output of `batch`",
        description="Checks an output of `batch`: every id is there once for each setting, every "
        "image decodes, every checksum matches. Reads everything. Exits with code 1 if anything is "
        "missing or damaged.",
        epilog=EXAMPLES,
    )
    parser.add_argument("out", metavar="DIR", help="the --out of `batch`")
    parser.add_argument(
        "--repair", action="store_true",
        help="drop damaged units (groups of lines that are made together), so that the next "
        "`batch` makes them again",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON, with every problem"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments.out)
    with Bar("verify", unit="unit", disable=None) as bar:
        report = verify(store, on_unit=bar.show)
    dropped = repair(store, report.problems) if arguments.repair else []
    if arguments.json:
        print(json.dumps({"out": arguments.out, **report.to_json(), "dropped": dropped}, indent=1))
    else:
        _print(report, store, dropped, repairing=arguments.repair)
    return 1 if report.problems else 0


def _print(report: Report, store: Store, dropped: list[str], *, repairing: bool) -> None:
    for problem in report.problems[:SHOWN]:
        say(str(problem))
    if len(report.problems) > SHOWN:
        say(f"and {len(report.problems) - SHOWN} more")
    for name in dropped:
        say(f"dropped {store.url}/{name}")
    if repairing and report.problems:
        say("run the same `batch` command again to make what is missing")
    elif any(problem.damaged for problem in report.problems):
        say("`batch-verify --repair` drops what is damaged, so that `batch` makes it again")
    state = plural(len(report.problems), "problem") if report.problems else "whole"
    print(
        f"{store.url}: {state}; {report.images} of {plural(report.expected_images, 'image')} in "
        f"{report.units} of {plural(report.expected_units, 'unit')}"
    )
