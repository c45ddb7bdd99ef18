"""`reground-jax compare`: the papers' figure, layouts under several wirings."""

import argparse
import itertools

from reground_jax.basics.options import NAMES, Option, read_items
from reground_jax.basics.wording import slug
from reground_jax.cli import request
from reground_jax.cli.options import add_option, add_options, made
from reground_jax.cli.parser import Parser
from reground_jax.cli.sampling import Setup, find_model, load, sample
from reground_jax.draw import comparison_grid
from reground_jax.images import check_writable, save_png
from reground_jax.settings import WIRINGS, checked_seeds

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
        description="Draws a figure: a column per method, a row per layout and seed.",
        epilog=EXAMPLES,
    )
    request.add_layout_options(parser)
    columns = Option(
        f"methods to compare, by the name of their wiring, in order; out of {', '.join(WIRINGS)} "
        f"(default: {','.join(COLUMNS)}). coupled:0.5 has a coupling of its own, and "
        "boxdiff+parallel attention guidance. The layout always comes first",
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
    names = dict.fromkeys(getattr(arguments, "columns", COLUMNS))
    methods = [name for name in names if name != "layout"]
    fields = request.checked_settings(arguments, methods)
    layouts = request.read_layouts(arguments)
    seeds = checked_seeds(getattr(arguments, "seeds", SEEDS))
    rows = [(layout, seed) for layout in layouts for seed in seeds]
    out = request.output_path(arguments.out, f"compare-{slug(layouts[0].prompt)}.png")

    model = find_model(setup.model, setup.cache)
    settings = model.settings(fields)
    columns = {name: settings.with_method(name) for name in methods}
    for layout, column in itertools.product(layouts, columns.values()):
        model.check(layout, column)
    check_writable(out)
    pipe = load(model.directory, settings.dtype, setup)
    images = {}
    for name, column in columns.items():
        images[name] = sample(
            pipe,
            [layout for layout, _ in rows],
            column,
            [seed for _, seed in rows],
            setup=setup,
            label=name,
            announce=not images,
        )
    labels = [f"seed {seed}" for _, seed in rows]
    save_png(out, comparison_grid([layout for layout, _ in rows], images, row_labels=labels))
    print(out)
    return 0
