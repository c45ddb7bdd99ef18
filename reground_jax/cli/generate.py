"""`reground-jax generate`: one image from a layout, or the same one again from its PNG."""

import argparse
import dataclasses
import warnings
from pathlib import Path

from reground_jax.cli import request
from reground_jax.cli.progress import say
from reground_jax.cli.sampling import DEFAULT_MODEL, add_model_options, load, locate, sample
from reground_jax.draw import draw_boxes
from reground_jax.images import Recipe, check_writable, read_recipe, save_png
from reground_jax.settings import Settings
from reground_jax.wording import shown

EXAMPLES = """\
examples:
  reground-jax generate "a teddy bear sitting next to a bird" --model my-model \\
      --box "a teddy bear@0,0.09,0.33,0.76" --box "a bird@0.55,0.11,1,0.8" --out bear.png
      writes bear.png, with all of its settings inside, and bear.boxes.png, with the boxes drawn
  reground-jax generate --from bear.png --out again.png
      makes the same pixels again (on the same kind of device)
  reground-jax generate --from bear.png --wiring sequential --out gligen.png
      the same but for what is given: here, by GLIGEN instead of ReGround"""


def add(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "generate",
        help="make an image from a prompt and boxes",
        description="Makes an image from a prompt and boxes, or again from an earlier image.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    request.add_layout_options(parser)
    parser.add_argument(
        "--from", dest="source", metavar="IMAGE.png",
        help="take layout, settings, seed and model from a PNG that this command wrote; options "
        "that are given with it change these (a model that is not a directory here, or built in, "
        "is to be named with --model)",
    )  # fmt: skip
    request.add_settings_options(parser, wiring=True)
    parser.add_argument(
        "--seed", type=request.number,
        help="0..4294967295; another seed is another image of the same request (default: 0)",
    )  # fmt: skip
    add_model_options(parser)
    parser.add_argument(
        "--out", metavar="PATH",
        help="PNG file, or folder, to write (default: named after the prompt and the seed)",
    )  # fmt: skip
    parser.add_argument(
        "--no-boxes-image", action="store_true", help="do not write NAME.boxes.png as well"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    recipe = read_request(arguments)
    name = f"{request.slug(recipe.layout.prompt)}-{recipe.seed}.png"
    if arguments.source is not None:
        name = f"{Path(arguments.source).stem}-again.png"
    out = request.output_path(arguments.out, name)

    from reground_jax.sampling.noise import check_seeds

    check_seeds([recipe.seed])
    directory, recipe = find_model(arguments, recipe)
    drawn = out.with_suffix(".boxes.png")
    draws_boxes = bool(recipe.layout.boxes) and not arguments.no_boxes_image
    for path in (out, drawn) if draws_boxes else (out,):
        check_writable(path)
    if arguments.source is not None:
        say(f"{arguments.source}: {summary(directory, recipe)}")
    pipe = load(
        directory, recipe.settings.dtype, keep=not arguments.no_cache, cache=arguments.cache
    )
    image = sample(pipe, [recipe.layout], recipe.settings, [recipe.seed], label=out.stem)[0]
    save_png(out, image, recipe)
    print(out)
    if draws_boxes:
        save_png(drawn, draw_boxes(image, recipe.layout))
        print(drawn)
    return 0


def read_request(arguments: argparse.Namespace) -> Recipe:
    """What is asked for, with the checkpoint by name alone. Raises ValueError."""
    given = request.given_settings(arguments)
    if arguments.source is None:
        settings = Settings(**given)
        layout = request.read_layout(arguments, settings)
        seed = 0 if arguments.seed is None else arguments.seed
        return Recipe(layout, settings, seed, checkpoint=arguments.model)
    if request.has_layout(arguments):
        raise ValueError(
            f"--from {arguments.source} has the prompt and the boxes: leave out prompt, --box and "
            "--layout; other options change what they name"
        )
    made = read_recipe(arguments.source)
    recipe = dataclasses.replace(
        made,
        layout=request.with_negative_prompt(made.layout, arguments),
        settings=dataclasses.replace(made.settings, **given),
        seed=made.seed if arguments.seed is None else arguments.seed,
    )
    request.check_max_boxes(recipe.layout, recipe.settings.max_boxes)
    changes = recipe.settings.diff(made.settings)
    if changes:
        listed = ", ".join(f"{name} {old} -> {new}" for name, (new, old) in changes.items())
        say(f"as {arguments.source}, but {listed}")
    return recipe


def find_model(arguments: argparse.Namespace, recipe: Recipe) -> tuple[Path, Recipe]:
    """The model's directory, and the recipe with its name and checksum.

    Raises ValueError if an image is to be made again and its own model is not here, or has changed
    since; warns if the user names another one.
    """
    from reground_jax.model import read_description

    if arguments.source is not None and arguments.model is None:
        directory = recorded_model(arguments.source, recipe)
        checksum = read_description(directory).checksum
        return directory, dataclasses.replace(recipe, checksum=checksum)
    name = arguments.model or DEFAULT_MODEL
    directory = locate(name, arguments.cache)
    description = read_description(directory)
    if recipe.checksum is not None and not description.has_checksum(recipe.checksum):
        warnings.warn(
            f"{another_model(arguments.source, recipe, name, description.checksum)}: the image "
            "will differ",
            stacklevel=2,
        )
    return directory, dataclasses.replace(recipe, checkpoint=name, checksum=description.checksum)


def recorded_model(source: str, recipe: Recipe) -> Path:
    """The directory of the model that a recipe names: a built-in one, or one of its checksum.

    The recipe may be a stranger's. So nothing is fetched or converted for it, no other machine is
    asked, and of a directory that it names no more is read than what has the checksum. Raises
    ValueError that says what to do.
    """
    from reground_jax.convert.locate import BUILT_IN, MODELS
    from reground_jax.model import is_model_directory, read_description

    name = recipe.checkpoint
    if not name:
        raise ValueError(f"{source} does not say which model made it: add --model")
    candidates = [MODELS / name] if name in BUILT_IN else []
    local = local_path(name)
    if local is not None and recipe.checksum is not None and is_model_directory(local):
        candidates.append(local)
    if not candidates:
        raise ValueError(
            f"{source} was made with model {shown(name)}, which is no model directory of its "
            f"checksum here: add --model {shown(name)}, or the place where it is, to use it"
        )
    for directory in candidates:
        if recipe.checksum is None or read_description(directory).has_checksum(recipe.checksum):
            return directory.absolute()
    found = read_description(candidates[-1]).checksum
    raise ValueError(
        f"{another_model(source, recipe, name, found)}: name the old one with --model, or "
        f"--model {shown(name)} for another image"
    )


def local_path(name: str) -> Path | None:
    """The path that a stranger's text is, or None if to look at it might ask another machine."""
    if "\0" in name or "://" in name or name[:2] in ("//", "\\\\", "/\\", "\\/"):
        return None
    if name.startswith("~"):
        if not name.startswith("~/"):  # users may be looked up in a directory service
            return None
        try:
            return Path(name).expanduser()
        except RuntimeError:  # there is no home
            return None
    return Path(name)


def another_model(source: str | None, recipe: Recipe, name: str, checksum: str) -> str:
    return (
        f"{source} was made with model {shown(recipe.checkpoint)} of checksum "
        f"{str(recipe.checksum)[:12]!a}, but {shown(name)} has checksum {checksum[:12]!a}"
    )


def summary(directory: Path, recipe: Recipe) -> str:
    """Size, steps and model: what a recipe from elsewhere is about to cost."""
    from reground_jax.model import read_description

    config = read_description(directory).config
    own = config.unet.sample_size * config.vae.downsampling
    height, width = recipe.settings.height or own, recipe.settings.width or own
    steps, boxes = recipe.settings.num_steps, len(recipe.layout.boxes)
    return f"{width}x{height} pixels, {steps} steps, {boxes} boxes, model {shown(directory.name)}"
