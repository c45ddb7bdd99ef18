"""Options that say what to make, and the `Layout` and `Settings` that they mean. Imports no JAX."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

from reground_jax.home import expand_home
from reground_jax.layout import Layout, check_max_boxes
from reground_jax.settings import DTYPES, SOLVER_NAMES, WIRINGS, Settings

BOX_FORM = "PHRASE@X0,Y0,X1,Y1"


def add_layout_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to make")
    group.add_argument("prompt", nargs="?", help="text of the whole image")
    group.add_argument(
        "--box", action="append", default=[], metavar=BOX_FORM, dest="boxes",
        help="a thing and its place, once per box: left, top, right, bottom as fractions 0..1 of "
        'the image, from its top left corner, as in --box "a bird@0.55,0.11,1,0.8"',
    )  # fmt: skip
    group.add_argument(
        "--box-format", metavar="FORM",
        help="what the four numbers are: xyxy corners (default), or xywh left, top, width, height",
    )  # fmt: skip
    group.add_argument(
        "--layout", metavar="FILE.json",
        help="prompt and boxes from a file, instead: "
        '{"prompt": "...", "phrases": ["a bird"], "boxes": [[0.55, 0.11, 1, 0.8]]}',
    )  # fmt: skip
    group.add_argument(
        "--negative-prompt", metavar="TEXT", help="what the image should not look like"
    )


def add_settings_options(
    parser: argparse.ArgumentParser, *, wiring: bool, gamma: bool = True
) -> None:
    """Options named like the fields of Settings; those that are not given are not set."""
    group = parser.add_argument_group("how to make it")

    def option(name: str, field: str, metavar: str, text: str, kind: Any = str) -> None:
        default = getattr(Settings, field)
        shown = "the model's own" if default is None else default
        if isinstance(shown, tuple):
            shown = ",".join(f"{part:g}" for part in shown)
        group.add_argument(
            name, dest=field, metavar=metavar, type=kind, default=argparse.SUPPRESS,
            help=f"{text} (default: {shown})",
        )  # fmt: skip

    if wiring:
        option(
            "--wiring", "wiring", "NAME",
            f"parallel is ReGround, sequential is GLIGEN; one of {', '.join(WIRINGS)}",
        )  # fmt: skip
    if gamma:
        option(
            "--gamma", "gamma", "G",
            "fraction 0..1 of the first steps in which the boxes count, or three parts "
            "ON,DECAY,OFF that add up to 1; a lower one gives the prompt more room",
            numbers,
        )  # fmt: skip
    option("--steps", "num_steps", "N", "denoising steps", number)
    option(
        "--guidance-scale", "guidance_scale", "S",
        "how strongly the image follows the texts; 1 turns guidance off, in half the time", number,
    )  # fmt: skip
    option(
        "--guidance-interval", "guidance_interval", "START,STOP",
        "approximate: guidance in this part of the steps only, as in 0,0.5; the others take half "
        "the time",
        numbers,
    )  # fmt: skip
    option("--solver", "solver", "NAME", f"one of {', '.join(SOLVER_NAMES)}")
    option("--eta", "eta", "E", "0..1, noise that the solver ddim adds at each step", number)
    option("--height", "height", "PIXELS", "height of the image, a multiple of 8", number)
    option("--width", "width", "PIXELS", "width of the image, a multiple of 8", number)
    option(
        "--dtype", "dtype", "NAME",
        f"{' or '.join(DTYPES)}, which needs half the memory and is faster on GPU and TPU",
    )  # fmt: skip
    option(
        "--max-boxes", "max_boxes", "N",
        "room for boxes; the model was trained with 30, and another number changes the image",
        number,
    )  # fmt: skip


def number(text: str) -> int | float | str:
    """The number that the text is; other text stays, for the check that knows the rule."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def numbers(text: str) -> Any:
    """A gamma, or its three parts between commas, for Settings to check."""
    return [number(part) for part in text.split(",")] if "," in text else number(text)


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of Settings that the command line gives."""
    names = [field.name for field in dataclasses.fields(Settings)]
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def has_layout(arguments: argparse.Namespace) -> bool:
    return arguments.prompt is not None or bool(arguments.boxes) or arguments.layout is not None


def read_layout(arguments: argparse.Namespace, settings: Settings) -> Layout:
    """The layout of a prompt and boxes, or of a file. Raises ValueError."""
    form = {} if arguments.box_format is None else {"box_format": arguments.box_format}
    if arguments.layout is not None:
        if arguments.prompt is not None or arguments.boxes:
            raise ValueError(
                f"--layout {arguments.layout} has the prompt and the boxes: give the file, "
                "or a prompt with --box, not both"
            )
        layout = Layout.load(arguments.layout, **form)
    elif arguments.prompt is None:
        raise ValueError(
            'there is no prompt: give a text in quotes (an empty one, "", is legal), '
            "or --layout FILE.json"
        )
    else:
        split = [_split_box(text) for text in arguments.boxes]
        phrases, boxes = [phrase for phrase, _ in split], [box for _, box in split]
        request = {"prompt": arguments.prompt, "phrases": phrases, "boxes": boxes}
        layout = Layout.from_json(request, **form)
    layout = with_negative_prompt(layout, arguments)
    check_max_boxes(layout, settings.max_boxes)
    return layout


def with_negative_prompt(layout: Layout, arguments: argparse.Namespace) -> Layout:
    if arguments.negative_prompt is None:
        return layout
    return dataclasses.replace(layout, negative_prompt=arguments.negative_prompt)


def _split_box(text: str) -> tuple[str, list[int | float | str]]:
    """Phrase and numbers; a phrase may have an @ in it, numbers have none."""
    phrase, at, numbers = text.rpartition("@")
    if not at:
        raise ValueError(
            f"--box {text!r} has no '@': write a phrase, @ and four numbers, {BOX_FORM}, "
            "as in 'a bird@0.55,0.11,1,0.8'"
        )
    return phrase.strip(), [number(part.strip()) for part in numbers.split(",")]


def output_path(out: str | None, name: str) -> Path:
    """Where to write: a PNG file, or `name` in a folder. Raises ValueError for other forms."""
    path = expand_home(out or name)
    if path.is_dir() or (out or "").endswith("/"):
        path /= name
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out is {out}: only PNG keeps the recipe exactly; name it *.png")
    return path


def slug(prompt: str) -> str:
    """The first words of a prompt as part of a file name."""
    return "-".join(re.findall(r"\w+", prompt.lower())[:8])[:60] or "image"
