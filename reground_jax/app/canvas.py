"""Boxes as gradio-image-annotation draws them, and as a `Layout` has them.

The component's boxes are pixels of a blank canvas, as dictionaries, and the newest comes first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageColor

from reground_jax.draw import PANEL, phrase_colors
from reground_jax.layout import Layout
from reground_jax.layout_fields import Box

SIDE = 1000  # pixels of the canvas's longer side, so that boxes have three decimals
SMALLEST = 10  # pixels of a side of a box that can be drawn

Drawn = Mapping[str, Any]  # label, xmin, ymin, xmax, ymax, color


def canvas_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of the canvas for an image of this size."""
    longer = max(height, width)
    return round(SIDE * width / longer), round(SIDE * height / longer)


def blank(size: tuple[int, int]) -> Image.Image:
    """The canvas: paper with a fine grid of eighths."""
    picture = Image.new("RGB", size, PANEL)
    line = "#e9e7e0"
    for eighth in range(1, 8):
        x, y = round(size[0] * eighth / 8), round(size[1] * eighth / 8)
        picture.paste(line, (x, 0, x + 1, size[1]))
        picture.paste(line, (0, y, size[0], y + 1))
    return picture


def drawn_boxes(layout: Layout, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The boxes of a layout as the component takes them, the last one first."""
    colors = phrase_colors(layout.phrases)
    drawn = []
    for phrase, box in zip(layout.phrases, layout.boxes, strict=True):
        sides = zip(("xmin", "ymin", "xmax", "ymax"), _pixels(box, size), strict=True)
        color = ImageColor.getrgb(colors[phrase])
        drawn.append({"label": phrase, "color": color, **dict(sides)})
    return drawn[::-1]


def layout_boxes(
    drawn: Sequence[Drawn], size: tuple[int, int], exact: Sequence[Box] = ()
) -> tuple[list[str], list[Box]]:
    """Phrases and boxes as fractions, in the order in which they were drawn.

    exact: boxes that were put on the canvas, where they lost digits; one that has not been moved
    since is itself again. Raises ValueError for a box without a label.
    """
    known = {_pixels(box, size): box for box in exact}
    phrases, boxes = [], []
    for number, box in enumerate(reversed(drawn), 1):
        phrase = str(box.get("label") or "").strip()
        if not phrase:
            raise ValueError(
                f"box {number} has no label: double-click it to say what is in it, or delete it"
            )
        pixels = _inside(box, size)
        phrases.append(phrase)
        boxes.append(known.get(pixels) or _fractions(pixels, size))
    return phrases, boxes


def _pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    x0, y0, x1, y1 = box
    return round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)


def _inside(box: Drawn, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The corners in order, and cut at the edges of the canvas."""
    x0, x1 = sorted(min(max(round(box[name]), 0), size[0]) for name in ("xmin", "xmax"))
    y0, y1 = sorted(min(max(round(box[name]), 0), size[1]) for name in ("ymin", "ymax"))
    return x0, y0, x1, y1


def _fractions(pixels: tuple[int, int, int, int], size: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = pixels
    width, height = size
    return round(x0 / width, 4), round(y0 / height, 4), round(x1 / width, 4), round(y1 / height, 4)
