"""Sample grids that show training progress: targets and results, with captions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from reground_jax.draw import phrase_colors
from reground_jax.layout import Layout

PANEL = 160  # minimum side of an image in the grid, pixels
CAPTION = 42  # height of three lines of text, pixels


def sample_grid(
    layouts: Sequence[Layout],
    rows: Sequence[UInt8[np.ndarray, "B S S 3"]],
    *,
    columns: int = 6,
    boxes: bool = True,
) -> Image.Image:
    """One cell per layout, stacking that layout's image from each of `rows`.

    boxes: draw the layout's boxes over the last one.
    """
    side = max(PANEL, rows[0].shape[1])
    tall = side * len(rows) + CAPTION
    lines = -(-len(layouts) // columns)
    sheet = Image.new("RGB", (columns * side, lines * tall), "white")
    for index, layout in enumerate(layouts):
        left, top = index % columns * side, index // columns * tall
        for row, images in enumerate(rows):
            picture = Image.fromarray(images[index]).resize((side, side), Image.Resampling.NEAREST)
            if boxes and row == len(rows) - 1:
                _outline(picture, layout)
            sheet.paste(picture, (left, top + row * side))
        ImageDraw.Draw(sheet).multiline_text(
            (left + 2, top + side * len(rows)), _wrapped(layout.prompt), fill="black", font_size=10
        )
    return sheet


def save_grid(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _outline(picture: Image.Image, layout: Layout) -> None:
    colors, draw = phrase_colors(layout.phrases), ImageDraw.Draw(picture)
    for phrase, box in zip(layout.phrases, layout.boxes, strict=True):
        x0, y0, x1, y1 = (value * (picture.width - 1) for value in box)
        draw.rectangle((x0, y0, x1, y1), outline=colors[phrase])


def _wrapped(text: str, width: int = 29) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:3])
