"""`reground-jax map`: the map of a photograph, for `generate --map`."""

import argparse

from reground_jax.basics.fields import check_name
from reground_jax.cli import request
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import hint
from reground_jax.images import check_writable, save_png
from reground_jax.kinds import MAP_KINDS
from reground_jax.maps import DEFAULTS, make_map
from reground_jax.pictures import Picture

OPTIONS = ("estimator", "low", "high", "invert")
EXAMPLES = """\
examples:
  reground-jax map canny robot.jpg --out edges.png
  reground-jax generate "a robot made of glass" --model my-canny-model --map edges.png
  reground-jax map depth bird.jpg --estimator depth-anything/Depth-Anything-V2-Small-hf
needs pip install 'reground-jax[maps]'; kind hed needs pip install controlnet_aux"""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "map",
        help="make the map of a photograph, such as its edges or its depth",
        description="Makes the map of a photograph for models of kind hed, canny, depth, normal "
        "and sem, with OpenCV or a model of another library.",
        epilog=EXAMPLES,
    )
    parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(MAP_KINDS)}")
    parser.add_argument("photograph", metavar="PHOTOGRAPH", help="the picture to make it of")
    parser.add_argument(
        "--out", metavar="MAP.png",
        help="PNG file, or folder, to write (default: PHOTOGRAPH.KIND.png)",
    )  # fmt: skip
    parser.alias("--out", "-o", "--output")
    named = ", ".join(f"{kind}: {name}" for kind, name in DEFAULTS.items())
    parser.add_argument(
        "--estimator", metavar="FOLDER_OR_ID", default=argparse.SUPPRESS,
        help=f"the model that makes it, in a folder or on the Hub (default: {named})",
    )  # fmt: skip
    for name, default in (("low", 100), ("high", 200)):
        parser.add_argument(
            f"--{name}", metavar="N", type=float, default=argparse.SUPPRESS,
            help=f"canny: the {name} threshold of gradients (default: {default})",
        )  # fmt: skip
    parser.add_argument(
        "--invert", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help="depth: take the inverse of what the model predicts, because it is a distance, and "
        "near must be bright (default: as its configuration says)",
    )  # fmt: skip
    return parser


def run(arguments: argparse.Namespace) -> int:
    check_name("kind of map", arguments.kind, MAP_KINDS)
    picture = Picture.of(arguments.photograph, name="the photograph")
    assert picture.path is not None
    out = request.output_path(
        arguments.out, f"{picture.path.stem}.{arguments.kind}.png", "the values of a map"
    )
    if out.exists() and picture.path.exists() and out.samefile(picture.path):
        raise ValueError(f"--out is {out}, the photograph itself: choose another name")
    given = {name: getattr(arguments, name) for name in OPTIONS if hasattr(arguments, name)}
    hint(f"making a {arguments.kind} map of {arguments.photograph} ...")
    check_writable(out)
    save_png(out, make_map(picture, arguments.kind, **given))
    print(out)
    return 0
