"""Annotated image files, as training reads them, and GLIGEN's rules for their boxes.

The rules for boxes are those of GLIGEN's COCO training: scale the shorter side to the image size,
crop the center square, clip boxes to it, drop those under 1 % of its area, keep the 30 largest.
Unlike in GLIGEN's training, images are resized with Lanczos, and flipped only if a config says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import no_type_check

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.layout import Layout
from reground_jax.layout_fields import Box
from reground_jax.readers.pictures import read_picture

MIN_AREA = 0.01  # of the cropped image
MAX_BOXES = 30


@no_type_check  # the tests' type checker must not run before the checks below
@dataclass(frozen=True)
class Annotated:
    """An image file, its captions (any number), and its phrases with boxes.

    boxes  xyxy fractions of the whole image, before any crop; one per phrase
    annotated_size  (width, height) that the annotations give, if they do: it tells whether they
           refer to the image as stored, or as rotated by its EXIF orientation

    Raises ValueError for a caption that is not a string.
    """

    path: Path
    captions: tuple[str, ...]
    phrases: Sequence[str | None]
    boxes: Sequence[Sequence[float]]
    annotated_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for caption in self.captions:  # each becomes a prompt in some epoch
            Layout(prompt=caption, id=self.path.name)


def cropped(
    entry: Annotated, caption: str, *, size: int, max_boxes: int = MAX_BOXES
) -> tuple[UInt8[np.ndarray, "S S 3"], Layout]:
    """The center square of an image at `size` pixels, with the boxes that remain inside.

    A smaller image is enlarged. Raises ValueError that names the file if it cannot be read.
    """
    image = read_picture(entry.path, entry.annotated_size)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize(
        (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
    )
    boxes = [crop_box(box, image.size) for box in entry.boxes]
    kept = largest(boxes, max_boxes)
    layout = Layout(
        prompt=caption,
        phrases=[entry.phrases[i] for i in kept],
        boxes=[boxes[i] for i in kept],
        id=entry.path.name,
    )
    return np.asarray(square), layout


def crop_box(box: Sequence[float], image_size: tuple[float, float]) -> Box:
    """A box of an image of (width, height) in fractions of the image's center square, clipped."""
    side = min(image_size)
    edges = []
    for low, high, length in zip(box[:2], box[2:], image_size, strict=True):
        offset = (length - side) / 2
        edges.append([min(max((v * length - offset) / side, 0.0), 1.0) for v in (low, high)])
    (x0, x1), (y0, y1) = edges
    return x0, y0, x1, y1


def largest(boxes: list[Box], count: int) -> list[int]:
    """Indices of the `count` largest boxes of at least MIN_AREA, largest first."""
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
    kept = [i for i, area in enumerate(areas) if area >= MIN_AREA]
    return sorted(kept, key=lambda i: -areas[i])[:count]
