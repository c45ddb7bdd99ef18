"""`reground-jax generate`: one image from a layout, or the same one again from its PNG."""

import argparse
import dataclasses
import warnings
from pathlib import Path

from reground_jax.cli import request
from reground_jax.cli.progress import say
from reground_jax.cli.sampling import DEFAULT_MODEL, add_model_options, load, locate, sample
from reground_jax.draw import draw_boxes
from reground_jax.images import Recipe, read_recipe, save_png
from reground_jax.settings import Settings

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
        "that are given with it change these",
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
    pipe = load(
        directory, recipe.settings.dtype, keep=not arguments.no_cache, cache=arguments.cache
    )
    image = sample(pipe, [recipe.layout], recipe.settings, [recipe.seed], label=out.stem)[0]
    save_png(out, image, recipe)
    print(out)
    if recipe.layout.boxes and not arguments.no_boxes_image:
        drawn = out.with_suffix(".boxes.png")
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

    Raises ValueError if an image is to be made again and its own model has changed since; warns if
    the user names another one.
    """
    from reground_jax.model import read_description

    name = arguments.model or recipe.checkpoint or DEFAULT_MODEL
    try:
        directory = locate(name, arguments.cache)
    except (ValueError, OSError) as error:
        if arguments.model is not None or recipe.checkpoint is None:
            raise
        raise ValueError(
            f"{arguments.source} was made with model {name}, which is not to be had here: name its "
            f"place with --model ({error})"
        ) from error
    info = read_description(directory).info
    if recipe.checksum not in (None, info["checksum"]):
        message = (
            f"{arguments.source} was made with model {recipe.checkpoint} of checksum "
            f"{recipe.checksum[:12]}, but {name} has checksum {info['checksum'][:12]}"
        )
        if arguments.model is None:
            raise ValueError(
                f"{message}: name the old one with --model, or --model {name} for another image"
            )
        warnings.warn(f"{message}: the image will differ", stacklevel=2)
    return directory, dataclasses.replace(recipe, checkpoint=name, checksum=info["checksum"])
