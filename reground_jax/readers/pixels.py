"""Pixel boxes -> fractions of the image, for COCO, LLM-grounded diffusion and InstanceDiffusion."""

import math
from typing import Any

from reground_jax.basics.wording import shown
from reground_jax.layout_fields import Box


def image_size(value: dict[str, Any]) -> tuple[float, float]:
    """ "width" and "height" of an image. Raises ValueError that names the field."""
    width, height = (_number(value.get(name)) for name in ("width", "height"))
    for name, pixels in (("width", width), ("height", height)):
        if pixels is None or pixels <= 0:
            raise ValueError(
                f"its {name} is {shown(value.get(name))}: it must be a number of pixels above 0"
            )
    assert width is not None and height is not None
    return width, height


def fractions(box: Any, size: tuple[float, float], *, name: str = "bbox") -> Box:
    """x, y, width, height in pixels of an image of (width, height) -> xyxy fractions of it.

    Clipped: COCO's boxes extend beyond the image by fractions of a pixel, and language models' by a
    few pixels. Raises ValueError that names the box if it is invalid or lies outside.
    """
    numbers = [_number(value) for value in box] if isinstance(box, (list, tuple)) else []
    given = [value for value in numbers if value is not None]
    if len(numbers) != 4 or len(given) != 4:
        raise ValueError(
            f"its {name} is {shown(box)}: it must be x, y, width, height, four numbers of pixels"
        )
    x, y, w, h = given
    if w < 0 or h < 0:
        raise ValueError(f"its {name} is {shown(box)}: width and height must not be negative")
    width, height = size
    if x > width or y > height or x + w < 0 or y + h < 0:
        raise ValueError(
            f"its {name} is {shown(box)}: it lies outside the image, of {width:g} x {height:g} "
            "pixels"
        )
    x0, y0, x1, y1 = (
        min(max(edge, 0.0), 1.0)
        for edge in (x / width, y / height, (x + w) / width, (y + h) / height)
    )
    return x0, y0, x1, y1


def corner_fractions(box: Any, size: tuple[float, float], *, name: str = "box") -> Box:
    """`fractions` of x0, y0, x1, y1 in pixels. Raises ValueError, for reversed corners too."""
    numbers = [_number(value) for value in box] if isinstance(box, (list, tuple)) else []
    if len(numbers) != 4 or None in numbers:
        raise ValueError(f"its {name} is {shown(box)}: it must be x0, y0, x1, y1, four numbers")
    x0, y0, x1, y1 = (number or 0.0 for number in numbers)
    if x0 > x1 or y0 > y1:
        raise ValueError(f"its {name} is {shown(box)}: its corners are in the wrong order")
    return fractions([x0, y0, x1 - x0, y1 - y0], size, name=name)


def _number(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of 400 digits
        return None
    return number if math.isfinite(number) else None
