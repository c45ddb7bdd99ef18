"""`reground-jax compare`: the papers' figure, one layout under several wirings."""

import argparse
import dataclasses

from reground_jax.basics.options import NAMES, Option, read_items
from reground_jax.cli import request
from reground_jax.cli.options import add_option, add_options, made
from reground_jax.cli.parser import Parser
from reground_jax.cli.sampling import Setup, find_model, load, sample
from reground_jax.draw import comparison_grid
from reground_jax.images import check_writable, save_png
from reground_jax.layout import check_max_boxes
from reground_jax.settings import WIRINGS, checked_seeds, wiring_name

COLUMNS = ("no_grounding", "sequential", "parallel")
SEEDS = (0, 1, 2)
EXAMPLES = """\
example:
  reground-jax compare "a green donut and a bus on a city street" \\
      --box "a donut@0.125,0.125,0.5,0.5" --box "a bus@0.375,0.625,1,0.9375" --out donut.png
      writes a figure of three rows (seeds) and four columns: the layout, and what Stable
      Diffusion (no_grounding), GLIGEN (sequential) and ReGround (parallel) make of it"""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "compare",
        help="draw a figure that compares Stable Diffusion, GLIGEN and ReGround on one layout",
        description="Draws a figure: one layout, a column per method, a row per seed.",
        epilog=EXAMPLES,
    )
    request.add_layout_options(parser)
    columns = Option(
        f"methods to compare, by the name of their wiring, in order; out of {', '.join(WIRINGS)} "
        f"(default: {','.join(COLUMNS)}). The layout always comes first",
        "NAME,...",
        read=read_items,
        name="--columns",
        aliases=("--wirings",),
        group="figure",
        words=NAMES,
    )
    add_option(parser, "columns", columns)
    request.add_variants(
        parser, "seeds", "figure", f"one row each (default: {','.join(map(str, SEEDS))})"
    )
    request.add_settings_options(parser, omit=("wiring",))
    add_options(parser, Setup, defaults={"batch_size": "up to 8"})
    parser.group("output").add_argument(
        "--out", metavar="PATH",
        help="PNG file, or folder, to write (default: a name made from the prompt)",
    )  # fmt: skip
    parser.alias("--out", "-o", "--output")
    return parser


def run(arguments: argparse.Namespace) -> int:
    setup = made(Setup, arguments)
    fields = request.checked_settings(arguments)
    names = getattr(arguments, "columns", COLUMNS)
    wirings = [name for name in dict.fromkeys(names) if name != "layout"]
    for name in wirings:
        wiring_name(name)
    layout = request.read_layout(arguments)
    rows = checked_seeds(getattr(arguments, "seeds", SEEDS))
    out = request.output_path(arguments.out, f"compare-{request.slug(layout.prompt)}.png")

    model = find_model(setup.model, setup.cache)
    settings = model.settings(fields)
    check_max_boxes(layout, settings.max_boxes)
    check_writable(out)
    pipe = load(model.directory, settings.dtype, setup)
    images = {}
    for name in wirings:
        images[name] = sample(
            pipe,
            [layout] * len(rows),
            dataclasses.replace(settings, wiring=name),
            rows,
            setup=setup,
            label=name,
            announce=not images,
        )
    labels = [f"seed {seed}" for seed in rows]
    save_png(out, comparison_grid([layout] * len(rows), images, row_labels=labels))
    print(out)
    return 0
