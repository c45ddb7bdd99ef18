"""`reground-jax app`: a page in the browser to draw boxes and compare what becomes of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reground_jax.basics.home import expand_home
from reground_jax.basics.options import read_number
from reground_jax.cli.options import add_options, made
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import say
from reground_jax.cli.sampling import Setup, load, locate

if TYPE_CHECKING:
    from reground_jax.app.models import Models, Offered
    from reground_jax.pipeline import Pipeline

HOST = "127.0.0.1"
MODELS = ("emoji", "emoji-parallel")
EXAMPLES = """\
examples:
  reground-jax app
      serves the page with the small models that come with the package, for this machine only
  reground-jax app --model my-model --port 8000 --out pictures
      with a converted checkpoint; every finished picture is saved in pictures

needs pip install 'reground-jax[app]'"""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "app",
        help="serve a page to draw boxes in a browser and compare methods",
        description="Serves a page in the browser: draw boxes, label them, and watch the pictures "
        "of several methods come into being side by side.",
        epilog=EXAMPLES,
    )
    parser.group("model").add_argument(
        "--model", action="append", metavar="DIR_OR_ID", dest="models",
        help="a model that can be chosen on the page, once per model; as for `reground-jax "
        f"generate` (default: {' and '.join(MODELS)})",
    )  # fmt: skip
    parser.alias("--model", "-m", "--checkpoint")
    add_options(parser, Setup, only=("cache", "no_cache", "attention"))
    page = parser.group("page")
    page.add_argument(
        "--host", metavar="ADDRESS", default=HOST,
        help=f"where to listen: {HOST} for this machine only, 0.0.0.0 for everybody who can reach "
        f"it; there is no password (default: {HOST})",
    )  # fmt: skip
    page.add_argument(
        "--port", metavar="N", type=read_number, default=None,
        help="the port (default: 7860, or the next one that is free)",
    )  # fmt: skip
    parser.group("output").add_argument(
        "--out", metavar="DIR", help="save every finished picture in this folder"
    )
    parser.alias("--out", "-o", "--output")
    return parser


def run(arguments: argparse.Namespace) -> int:
    setup, port = made(Setup, arguments), arguments.port
    if port is not None and not (isinstance(port, int) and 1 <= port <= 65535):
        raise ValueError(f"--port is {port}: give a whole number from 1 to 65535")
    from reground_jax.app.server import serve

    out: Path | None = None if arguments.out is None else expand_home(arguments.out).absolute()
    names = arguments.models or MODELS
    serve(lambda: offered(names, setup), host=arguments.host, port=port, out=out, say=say)
    return 0


def offered(names: Sequence[str], setup: Setup) -> "Models":
    """The models of the page. Raises ValueError or OSError if one is missing or does not fit."""
    import jax

    from reground_jax.app.models import Models, offer

    def load_one(model: "Offered", dtype: str) -> "Pipeline":
        return load(model.directory, dtype, setup, devices=jax.devices()[:1])

    found = [offer(name, locate(name, setup.cache)) for name in dict.fromkeys(names)]
    return Models(found, load_one)
