"""`reground-jax generate`: one image from a layout, or an earlier one again from its PNG."""

import argparse
import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reground_jax.basics.small_files import local_path
from reground_jax.basics.wording import plural, shown, slug
from reground_jax.cli import request
from reground_jax.cli.options import add_options, given, made
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import hint, say
from reground_jax.cli.sampling import DEFAULT_MODEL, Setup, find_model, load, sample
from reground_jax.draw import draw_boxes
from reground_jax.images import Recipe, check_writable, read_recipe, save_png
from reground_jax.layout import check_max_boxes
from reground_jax.settings import Settings, checked_seeds

if TYPE_CHECKING:
    from reground_jax.storage.description import Description

EXAMPLES = """\
examples:
  reground-jax generate "a dog and a car in the snow at night" \\
      --box "a dog@0.125,0.25,0.5,0.625" --box "a car@0.5,0.625,1,0.9375" --out snow.png
      writes snow.png, with everything that made it inside, and snow.boxes.png, with the boxes drawn
  reground-jax generate --from snow.png --out again.png
      makes the same pixels again (on the same kind of device)
  reground-jax generate --from snow.png --wiring sequential --out gligen.png
      the same except for the options given: here, by GLIGEN instead of ReGround"""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "generate",
        help="make an image from a prompt and boxes",
        description="Makes an image from a prompt and boxes, or makes an earlier image again.",
        epilog=EXAMPLES,
    )
    request.add_layout_options(parser)
    request.add_settings_options(parser)
    add_options(parser, request.OneSeed)
    add_options(parser, Setup, omit=("batch_size",))
    parser.group("layout").add_argument(
        "--from", dest="source", metavar="IMAGE.png",
        help="take layout, settings, seed and model from a PNG that this command wrote; other "
        "options replace parts of it. Its model is used if it is built in, or a directory on this "
        "machine; otherwise name it with --model",
    )  # fmt: skip
    output = parser.group("output")
    output.add_argument(
        "--out", metavar="PATH",
        help="PNG file, or folder, to write (default: a name made from the prompt and the seed)",
    )  # fmt: skip
    parser.alias("--out", "-o", "--output")
    output.add_argument("--no-boxes-image", action="store_true", help="do not write NAME.boxes.png")
    return parser


def run(arguments: argparse.Namespace) -> int:
    setup = made(Setup, arguments)
    recipe = read_request(arguments)
    name = f"{slug(recipe.layout.prompt)}-{recipe.seed}.png"
    if arguments.source is not None:
        name = f"{Path(arguments.source).stem}-again.png"
    out = request.output_path(arguments.out, name)

    directory, recipe = choose_model(arguments, recipe)
    drawn = out.with_suffix(".boxes.png")
    draws_boxes = bool(recipe.layout.boxes or recipe.layout.keypoints)
    draws_boxes = draws_boxes and not arguments.no_boxes_image
    for path in (out, drawn) if draws_boxes else (out,):
        check_writable(path)
    if arguments.source is not None:
        say(f"{arguments.source}: {summary(directory, recipe)}")
    pipe = load(directory, recipe.settings.dtype, setup)
    image = sample(
        pipe, [recipe.layout], recipe.settings, [recipe.seed], setup=setup, label=out.stem
    )[0]
    save_png(out, image, recipe)
    print(out)
    if draws_boxes:
        save_png(drawn, draw_boxes(image, recipe.layout))
        print(drawn)
    return 0


def read_request(arguments: argparse.Namespace) -> Recipe:
    """The request, before any model is opened. Raises ValueError.

    Without --from, the settings are checked, but the model's recommended ones are still missing.
    """
    seed: dict[str, Any] = given(arguments, request.OneSeed)
    checked_seeds(list(seed.values()))
    if arguments.source is None:
        settings = Settings(**request.checked_settings(arguments))
        layout = request.read_layout(arguments)
        return Recipe(layout, settings, seed.get("seed", 0))
    if request.has_layout(arguments):
        raise ValueError(
            f"--from {arguments.source} has the prompt and the boxes: leave out the prompt, --box "
            "and --layout; other options replace what they name"
        )
    old = read_recipe(arguments.source)
    settings = dataclasses.replace(old.settings, **given(arguments, Settings))
    layout = request.with_negative_prompt(old.layout, arguments)
    check_max_boxes(layout, settings.max_boxes)
    if changes := settings.diff(old.settings):
        listed = ", ".join(f"{name} {then} -> {now}" for name, (now, then) in changes.items())
        say(f"as {arguments.source}, but {listed}")
    return dataclasses.replace(old, layout=layout, settings=settings, **seed)


def choose_model(arguments: argparse.Namespace, recipe: Recipe) -> tuple[Path, Recipe]:
    """The model's directory, and the recipe completed from the model.

    The recipe gets the model's name, its checksum and, for a new image, its recommended settings.
    Raises ValueError if an image is to be made again but its own model is missing or has changed
    since; warns if the user names another one.
    """
    named = given(arguments, Setup)
    if arguments.source is not None and "model" not in named:
        hint(f"loading the model of {arguments.source} ...")
        directory = recorded_model(arguments.source, recipe)
        return directory, dataclasses.replace(recipe, checksum=describe(directory).checksum)
    name = named.get("model", DEFAULT_MODEL)
    found = find_model(name, named.get("cache"))
    if arguments.source is None:
        settings = found.settings(given(arguments, Settings))
        recipe = dataclasses.replace(recipe, settings=settings)
    elif recipe.checksum and not describe(found.directory).has_checksum(recipe.checksum):
        message = another_model(arguments.source, recipe, name, found.checksum)
        warnings.warn(f"{message}: the image will differ", stacklevel=2)
    found.check(recipe.layout, recipe.settings)
    return found.directory, dataclasses.replace(recipe, checkpoint=name, checksum=found.checksum)


def describe(directory: Path) -> "Description":
    from reground_jax.model import read_description

    return read_description(directory)


def recorded_model(source: str, recipe: Recipe) -> Path:
    """The directory of the model that a recipe names: a built-in one, or one with its checksum.

    The recipe is untrusted, so nothing is fetched or converted for it, no other machine is
    contacted, and from a directory that it names only the files with the checksum are read. Raises
    ValueError that says what to do.
    """
    from reground_jax.convert.locate import BUILT_IN, MODELS
    from reground_jax.model import is_model_directory

    name = recipe.checkpoint
    if not name:
        raise ValueError(f"{source} does not say which model made it: add --model")
    candidates = [MODELS / name] if name in BUILT_IN else []
    local = local_path(name)
    if local is not None and recipe.checksum is not None and is_model_directory(local):
        candidates.append(local)
    if not candidates:
        raise ValueError(
            f"{source} was made with model {shown(name)}, and no model directory with its checksum "
            f"was found under that name: add --model {shown(name)}, or the model's location, to "
            "use it"
        )
    for directory in candidates:
        if recipe.checksum is None or describe(directory).has_checksum(recipe.checksum):
            return directory.absolute()
    found = describe(candidates[-1]).checksum
    raise ValueError(
        f"{another_model(source, recipe, name, found)}: pass the old model with --model, or "
        f"--model {shown(name)} for a different image"
    )


def another_model(source: str | None, recipe: Recipe, name: str, checksum: str) -> str:
    return (
        f"{source} was made with model {shown(recipe.checkpoint)} (checksum "
        f"{str(recipe.checksum)[:12]!a}), but {shown(name)} has checksum {checksum[:12]!a}"
    )


def summary(directory: Path, recipe: Recipe) -> str:
    """Size, steps, boxes and model, which show what running a recipe will cost."""
    config = describe(directory).config
    height, width = recipe.settings.height or config.side, recipe.settings.width or config.side
    steps, count = recipe.settings.num_steps, len(recipe.layout.boxes)
    model = shown(directory.name)
    boxes = "1 box" if count == 1 else f"{count} boxes"
    return f"{width}x{height} pixels, {plural(steps, 'step')}, {boxes}, model {model}"
