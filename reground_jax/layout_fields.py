"""The fields of a `Layout`: what each may be, and the one form in which it is stored.

Errors name the layout, the box (counting from 1), the rule and the way out.
"""

import math
from pathlib import Path
from typing import Any

from reground_jax.basics.fields import as_float, as_int
from reground_jax.basics.wording import plural, shown
from reground_jax.pictures import Picture

Box = tuple[float, float, float, float]
Weights = float | tuple[float, ...]  # one number for all boxes, or one per box

# Corners, or x + width, of a box that ends at the image's edge may be off by a float32 rounding
# error, which is not a mistake.
EDGE_TOLERANCE = 1e-6


def check_text(what: str, text: Any) -> None:
    """Raise ValueError unless it is a string that any tokenizer and file can encode."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {shown(text)}: it must be a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has an unpaired surrogate ({text[error.start]!a}) at character "
            f"{error.start + 1}: remove it, or write the whole character"
        ) from None


def checked_phrases(
    phrases: Any, name: str, count: int, images: tuple[Picture | None, ...] | None
) -> tuple[str | None, ...]:
    """One phrase per box of `count`; None, or "", for a box that has an image instead."""
    if isinstance(phrases, str) or not hasattr(phrases, "__iter__"):
        raise ValueError(
            f"phrases of {name} are {shown(phrases)}: give a list with one text per box"
        )
    given = tuple(phrases)
    if images is not None and not given:
        given = (None,) * count
    found = []
    for number, phrase in enumerate(given, 1):
        absent = phrase is None or (isinstance(phrase, str) and not phrase.strip())
        if absent and images is not None:
            found.append(None)
            if len(given) == count and images[number - 1] is None:
                raise ValueError(
                    f"box {number} of {name} has neither a phrase nor an image: give it one, or "
                    "leave it out"
                )
            continue
        if absent or not isinstance(phrase, str):
            raise ValueError(
                f"phrase {number} of {name} is {shown(phrase)}: a phrase must be a nonempty "
                "string; say what is in the box, or remove both"
            )
        check_text(f"phrase {number} of {name}", phrase)
        found.append(phrase)
    if len(found) != count:
        raise ValueError(
            f"{name} has {len(found)} phrases and {count} boxes: give one box per phrase, in the "
            "same order"
        )
    return tuple(found)


def checked_images(
    images: Any, name: str, count: int, folder: str | Path | None
) -> tuple[Picture | None, ...] | None:
    """One picture per box of `count`, or None for a box without one; None if there is none."""
    if images is None:
        return None
    if isinstance(images, (str, dict, Path, Picture)) or not hasattr(images, "__iter__"):
        raise ValueError(f"images of {name} are {shown(images)}: give a list with one per box")
    found = tuple(
        None if image is None else Picture.of(image, folder, name=f"image {number} of {name}")
        for number, image in enumerate(images, 1)
    )
    if len(found) != count:
        raise ValueError(
            f"{name} has {plural(len(found), 'image')} and {count} boxes: give one per box, or "
            "None for a box without an image"
        )
    return found if any(image is not None for image in found) else None


def checked_weights(weights: Any, field: str, name: str, count: int) -> Weights | None:
    """One number, or one per box of `count`."""
    if weights is None:
        return None
    rule = "give one number of at least 0, or one per box"
    value = weights.tolist() if hasattr(weights, "tolist") else weights
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    found = tuple(as_float(f"a number of {field} of {name}", entry, rule) for entry in entries)
    if min(found, default=0) < 0:
        raise ValueError(f"{field} of {name} are {shown(value)}: {rule}")
    if not isinstance(value, (list, tuple)):
        return found[0]
    if len(found) != count:
        raise ValueError(
            f"{name} has {plural(len(found), 'number')} in {field} and {count} boxes: {rule}"
        )
    return found


def checked_tokens(tokens: Any, name: str, count: int) -> tuple[tuple[int, ...], ...]:
    """Positions in the encoded prompt, a list per box of `count`."""
    lists = list(tokens) if isinstance(tokens, (list, tuple)) else []
    if len(lists) != count or not all(isinstance(own, (list, tuple)) for own in lists):
        raise ValueError(
            f"tokens of {name} are {shown(tokens)}: give {count} lists of positions, one per box"
        )
    rule = "give positions in the encoded prompt, from 1"
    made = tuple(
        tuple(as_int(f"a token of box {number} of {name}", token, rule) for token in own)
        for number, own in enumerate(lists, 1)
    )
    if any(token < 1 for own in made for token in own):
        raise ValueError(f"tokens of {name} are {shown(tokens)}: {rule}")
    return made


def checked_boxes(boxes: Any, name: str, box_format: str) -> tuple[Box, ...]:
    """Boxes as xyxy floats. box_format: "xyxy" or "xywh", that of the argument."""
    if isinstance(boxes, (str, dict)) or not hasattr(boxes, "__iter__"):
        raise ValueError(
            f"boxes of {name} are {shown(boxes)}: give a list of boxes of four numbers"
        )
    return tuple(_box(box, f"box {i} of {name}", box_format) for i, box in enumerate(boxes, 1))


def _box(box: Any, name: str, box_format: str) -> Box:
    """One checked box as xyxy floats."""
    way_out = {
        "xyxy": "give xyxy fractions of the image, or box_format='xywh'",
        "xywh": "give x, y, width, height as fractions of the image, or box_format='xyxy'",
    }[box_format]
    try:
        if isinstance(box, str) or any(isinstance(value, (str, bool)) for value in box):
            raise TypeError
        given = [float(value) for value in box]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{name} is {shown(box)}: a box is a list of four numbers; {way_out}"
        ) from None
    name = f"{name} is {shown(given)}"
    if len(given) != 4:
        raise ValueError(f"{name}: a box has four numbers, not {len(given)}; {way_out}")
    if not all(map(math.isfinite, given)):
        raise ValueError(f"{name}: every number must be finite; {way_out}")

    x0, y0, x1, y1 = given
    edges = ("x0", "y0", "x1", "y1")
    orders = ("x1 must not be less than x0", "y1 must not be less than y0")
    if box_format == "xywh":
        x1, y1 = x0 + x1, y0 + y1
        edges = ("x", "y", "x + width", "y + height")
        orders = ("width must not be negative", "height must not be negative")
    x0, y0, x1, y1 = map(snap, (x0, y0, x1, y1))
    for edge, value in zip(edges, (x0, y0, x1, y1), strict=True):
        if not 0 <= value <= 1:
            pixels = " (divide pixels by the image's width and height)" if value > 1 else ""
            raise ValueError(f"{name}: {edge} is {value:.9g}, outside 0..1; {way_out}{pixels}")
    for order, low, high in zip(orders, (x0, y0), (x1, y1), strict=True):
        if high < low:
            raise ValueError(f"{name}: {order}; {way_out}")
    return x0, y0, x1, y1


def snap(edge: float) -> float:
    """A coordinate, moved onto the image's edge if it is outside by a rounding error at most."""
    inside = min(max(edge, 0.0), 1.0)
    return inside if abs(edge - inside) <= EDGE_TOLERANCE else edge
