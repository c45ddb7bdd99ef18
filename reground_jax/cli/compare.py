"""`reground-jax compare`: the papers' figure, one layout under several wirings."""

import argparse
import dataclasses

from reground_jax.cli import request
from reground_jax.cli.sampling import add_model_options, load, locate, sample
from reground_jax.draw import comparison_grid
from reground_jax.images import check_writable, save_png
from reground_jax.settings import WIRINGS, Settings

COLUMNS = "no_grounding,sequential,parallel"
EXAMPLES = """\
example:
  reground-jax compare "a red car and a white sheep" --model my-model --seeds 0,1,2 \\
      --box "a car@0.05,0.4,0.5,0.9" --box "a sheep@0.55,0.5,0.95,0.9" --out car.png
      writes a figure of three rows (seeds) and four columns: the layout, and what Stable
      Diffusion (no_grounding), GLIGEN (sequential) and ReGround (parallel) make of it"""


def add(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "compare",
        help="draw a figure of one layout by Stable Diffusion, GLIGEN and ReGround",
        description="Draws a figure: one layout, a column per method, a row per seed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    request.add_layout_options(parser)
    request.add_settings_options(parser, wiring=False)
    parser.add_argument(
        "--columns", default=COLUMNS, metavar="NAMES",
        help=f"wirings, in order, out of {', '.join(WIRINGS)} (default: {COLUMNS}); the layout "
        "always comes first",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", default="0,1,2", metavar="N,N,...", help="one row each (default: 0,1,2)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N",
        help="images at a time on each device (default: up to 8)",
    )  # fmt: skip
    add_model_options(parser)
    parser.add_argument(
        "--out", metavar="PATH",
        help="PNG file, or folder, to write (default: named after the prompt)",
    )  # fmt: skip
    return parser


def run(arguments: argparse.Namespace) -> int:
    settings = Settings(**request.given_settings(arguments))
    names = [name.strip() for name in arguments.columns.split(",")]
    columns = {  # each a checked Settings
        name: dataclasses.replace(settings, wiring=name) for name in names if name != "layout"
    }
    layout = request.read_layout(arguments, settings)
    seeds = [request.number(seed) for seed in arguments.seeds.split(",")]
    out = request.output_path(arguments.out, f"compare-{request.slug(layout.prompt)}.png")

    from reground_jax.sampling.noise import check_seeds

    rows = check_seeds(seeds).tolist()
    directory = locate(arguments.model, arguments.cache)
    check_writable(out)
    pipe = load(directory, settings.dtype, keep=not arguments.no_cache, cache=arguments.cache)
    images = {}
    for name, column in columns.items():
        images[name] = sample(
            pipe,
            [layout] * len(rows),
            column,
            rows,
            label=name,
            announce=not images,
            batch_size=arguments.batch_size,
        )
    labels = [f"seed {seed}" for seed in rows]
    save_png(out, comparison_grid([layout] * len(rows), images, row_labels=labels))
    print(out)
    return 0
