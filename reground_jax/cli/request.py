"""Options that say what to draw, and the `Layout` and `Settings` they give. Imports no JAX."""

import argparse
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, no_type_check

from reground_jax.basics.home import expand_home
from reground_jax.basics.json_text import parse_json
from reground_jax.basics.options import (
    NAMES,
    NUMBERS,
    option,
    options,
    read_gammas,
    read_items,
    read_number,
    read_numbers,
)
from reground_jax.cli.options import add_option, add_options, given
from reground_jax.cli.parser import Parser
from reground_jax.layout import Layout
from reground_jax.settings import DTYPES, MAX_SEED, WIRINGS, Settings

BOX_FORM = "PHRASE@X0,Y0,X1,Y1"
IMAGE_FORM = "PICTURE@X0,Y0,X1,Y1"
COMBINATIONS = "variants (one image per layout and combination)"


@no_type_check  # they are checked where they are used
@dataclass(frozen=True)
class Variants:
    """Lists of values, every combination of which is generated."""

    wirings: tuple[str, ...] = option(
        ("parallel",),
        "wirings, which are ways to combine attention to the boxes and to the prompt: parallel is "
        f"ReGround, sequential is GLIGEN; out of {', '.join(WIRINGS)}",
        "NAME,...",
        read=read_items,
        words=NAMES,
        aliases=("--wiring",),
        group=COMBINATIONS,
    )
    gammas: tuple[Any, ...] = option(
        (1.0,),
        "fractions 0..1 of the steps, counted from the first, in which the boxes are used (gamma "
        "in ReGround's paper), separated by commas or spaces. GLIGEN's three parts are written "
        "with slashes, as in 0.3/0/0.7",
        "G,...",
        read=read_gammas,
        words=NUMBERS,
        aliases=("--gamma",),
        group=COMBINATIONS,
    )
    seeds: tuple[int, ...] = option(
        (0,),
        "seeds of the run: an image's own seed is made from the run's seed and the layout's id, "
        "unless its line has one",
        "N,...",
        read=read_numbers,
        words=NUMBERS,
        aliases=("--seed",),
        group=COMBINATIONS,
    )


@dataclass(frozen=True)
class OneSeed:
    seed: int = option(
        0,
        f"0 to {MAX_SEED}; a different seed gives a different image of the same request",
        "N",
        read=read_number,
        aliases=("--seeds",),
    )


def add_layout_options(parser: Parser) -> None:
    group = parser.group("layout")
    group.add_argument("prompt", nargs="?", help="text of the whole image")
    group.add_argument(
        "--prompt", dest="prompt_option", metavar="TEXT", help="the same, as an option"
    )
    group.add_argument(
        "--box", action="append", default=[], metavar=BOX_FORM, dest="boxes",
        help="a thing and its place, once per box: left, top, right and bottom as fractions 0..1 "
        'of the image, from its top left corner, as in --box "a bird@0.55,0.11,1,0.8"',
    )  # fmt: skip
    parser.alias("--box", "--boxes")
    group.add_argument(
        "--box-format", metavar="FORM",
        help="what the four numbers are: xyxy for corners, or xywh for left, top, width and height "
        "(default: xyxy)",
    )  # fmt: skip
    group.add_argument(
        "--layout", metavar="FILE.json",
        help="read prompt and boxes from a file instead (compare: also a list of them): "
        '{"prompt": "...", "phrases": ["a bird"], "boxes": [[0.55, 0.11, 1, 0.8]]}',
    )  # fmt: skip
    group.add_argument(
        "--image", action="append", default=[], metavar=IMAGE_FORM, dest="images",
        help="for models of kind text_image: a picture of the thing and its place, once per box; "
        "with the numbers of a --box, the box has both. 0,1,0,1 is the place of a picture whose "
        "style is to be taken",
    )  # fmt: skip
    group.add_argument(
        "--keypoints", metavar="FILE.json",
        help="for models of kind keypoint: the joints of persons, a list of 17 per person in "
        "COCO's order, each [x, y] as fractions 0..1 of the image, or null if it is not visible",
    )  # fmt: skip
    group.add_argument(
        "--map",
        metavar="PICTURE",
        help="for models of kind hed, canny, depth, normal and sem: the map of the whole image",
    )
    group.add_argument(
        "--source",
        metavar="PICTURE",
        dest="source_image",
        help="for inpainting models: the picture whose boxes are filled",
    )
    group.add_argument(
        "--negative-prompt", metavar="TEXT", help="what the image should not look like"
    )


def add_variants(parser: Parser, field: str, group: str, text: str) -> None:
    """Adds only one of the lists, with a heading and a help text of its own."""
    described = dataclasses.replace(options(Variants)[field], group=group)
    add_option(parser, field, described, text)


def add_settings_options(
    parser: Parser, *, only: tuple[str, ...] | None = None, omit: tuple[str, ...] = ()
) -> None:
    for heading in ("sampling", "model", "hardware", "output"):  # in this order
        parser.group(heading)
    # Without --dtype, a command does not use the pipeline's default but sets one.
    defaults = {
        "dtype": f"the model's, or {DTYPES[0]}",
        "attention_guidance": "the model's, or none",
    }
    add_options(parser, Settings, only=only, omit=omit, defaults=defaults, source="the model's")


def checked_settings(arguments: argparse.Namespace, methods: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of Settings that the command line gives. Raises ValueError if one is invalid.

    methods: of a command that takes several, which are checked here and chosen by
    `Settings.with_method`.
    """
    fields = given(arguments, Settings)
    if "coupled" in methods:  # the only one that reads the amounts
        fields["wiring"] = "coupled"
    settings = Settings(**fields)
    for method in methods:
        settings.with_method(method)
    return fields


def has_layout(arguments: argparse.Namespace) -> bool:
    parts = (arguments.layout, _prompt(arguments), *_pictures(arguments).values())
    return bool(arguments.boxes) or any(part is not None for part in parts)


def _pictures(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a layout, besides prompt and boxes, by their options."""
    return {
        "images": arguments.images or None,
        "keypoints": arguments.keypoints,
        "map": arguments.map,
        "source": arguments.source_image,
    }


def read_layout(arguments: argparse.Namespace) -> Layout:
    """The layout of a prompt and boxes, or of a file. Raises ValueError."""
    (layout,) = read_layouts(arguments, one=True)
    return layout


def read_layouts(arguments: argparse.Namespace, *, one: bool = False) -> list[Layout]:
    """The layout of a prompt and boxes, or all of a file. Raises ValueError."""
    form = {} if arguments.box_format is None else {"box_format": arguments.box_format}
    prompt = _prompt(arguments)
    if arguments.layout is not None:
        others = any(part is not None for part in _pictures(arguments).values())
        if prompt is not None or arguments.boxes or others:
            raise ValueError(
                f"--layout {arguments.layout} has the prompt and the boxes: give the file, "
                "or a prompt with --box, not both"
            )
        path = arguments.layout
        layouts = [Layout.load(path, **form)] if one else Layout.load_all(path, **form)
    elif prompt is None:
        raise ValueError(
            'there is no prompt: give text in quotes (an empty text, "", is allowed), '
            "or --layout FILE.json"
        )
    else:
        layouts = [Layout.from_json({"prompt": prompt, **_boxes(arguments)}, **form)]
    return [with_negative_prompt(layout, arguments) for layout in layouts]


def _prompt(arguments: argparse.Namespace) -> str | None:
    first, second = arguments.prompt, arguments.prompt_option
    if first is not None and second is not None:
        raise ValueError(f"two prompts are given, {first!r} and {second!r}: leave one out")
    return second if first is None else first


def with_negative_prompt(layout: Layout, arguments: argparse.Namespace) -> Layout:
    if arguments.negative_prompt is None:
        return layout
    return dataclasses.replace(layout, negative_prompt=arguments.negative_prompt)


def _boxes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a layout that its options give, as JSON values."""
    rows = [[box, phrase, None] for phrase, box in map(_split_box, arguments.boxes)]
    for text in arguments.images:
        picture, box = _split(text, "--image", "a picture's path", IMAGE_FORM, "clock.png")
        row = next((row for row in rows if row[0] == box and row[2] is None), None)
        if row is None:
            rows.append(row := [box, None, None])
        row[2] = picture
    boxes, phrases, images = ([row[i] for row in rows] for i in range(3))
    fields = _pictures(arguments) | {"boxes": boxes, "phrases": phrases}
    fields["images"] = images if any(images) else None
    if arguments.keypoints is not None:
        fields["keypoints"] = _read_keypoints(arguments.keypoints)
    return fields


def _read_keypoints(path: str) -> Any:
    """The persons in a JSON file, checked by `Layout`. Raises ValueError."""
    try:
        return parse_json(expand_home(path).read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read key points {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"key points {path} are not JSON: {error}; correct the file") from error


def _split_box(text: str) -> tuple[str, list[int | float | str]]:
    return _split(text, "--box", "a phrase", BOX_FORM, "a bird")


def _split(
    text: str, option: str, what: str, form: str, example: str
) -> tuple[str, list[int | float | str]]:
    """The text and the numbers; the text may contain an @, the numbers do not."""
    before, at, box = text.rpartition("@")
    if not at:
        raise ValueError(
            f"{option} {text!r} has no '@': write {what}, @ and four numbers, {form}, "
            f"as in '{example}@0.55,0.11,1,0.8'"
        )
    return before.strip(), read_numbers(box)


def output_path(out: str | None, name: str, keeps: str = "the recipe") -> Path:
    """Where to write: a PNG file, or `name` in a folder. Raises ValueError for other formats."""
    path = expand_home(out or name)
    if path.is_dir() or (out or "").endswith("/"):
        path /= name
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"--out is {out}: only PNG files keep {keeps} exactly; choose a name that ends in .png"
        )
    return path
