"""Styles of the emoji world's images: filters applied to the finished scene.

Every filter maps an sRGB image to one of the same shape and moves edges by at most one pixel,
except "pixelated", which moves them by up to one block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageFilter

Picture = UInt8[np.ndarray, "S S 3"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601


def _uint8(values: np.ndarray) -> Picture:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _slope(gray: Float32[np.ndarray, "S S"]) -> Float32[np.ndarray, "S S"]:
    """Each pixel's largest absolute difference from its left and upper neighbors."""
    slope = np.zeros_like(gray)
    slope[:, 1:] = np.abs(np.diff(gray, axis=1))
    slope[1:] = np.maximum(slope[1:], np.abs(np.diff(gray, axis=0)))
    return slope


def color(image: Picture) -> Picture:
    return image


def black_and_white(image: Picture) -> Picture:
    gray = image.astype(np.float32) @ LUMA
    return _uint8(np.repeat((1.1 * gray - 12)[..., None], 3, axis=2))


def pencil(image: Picture) -> Picture:
    """Dark outlines and light tones on cream paper."""
    values = image.astype(np.float32)
    slope = np.maximum(_slope(values @ LUMA), 0.7 * _slope(values[..., 0] - values[..., 2]))
    tone = 0.62 + 0.38 / 255 * (values @ LUMA)
    ink = np.clip((slope - 8) / 70, 0, 1)
    paper = np.array([252, 248, 236], np.float32)
    return _uint8((tone * (1 - 0.85 * ink))[..., None] * paper)


def pixelated(image: Picture) -> Picture:
    """Blocks of about a twentieth of the image's side, in few colors."""
    size = image.shape[0]
    block = max(2, size // 20)
    small = Image.fromarray(image).reduce(block)
    values = np.asarray(small).astype(np.float32)
    few = _uint8(np.round(values / 36) * 36)
    return np.repeat(np.repeat(few, block, 0), block, 1)[:size, :size]


def watercolor(image: Picture) -> Picture:
    """Soft edges, pale colors, darker rims."""
    soft = Image.fromarray(image).filter(ImageFilter.MedianFilter(3))
    values = np.asarray(soft.filter(ImageFilter.GaussianBlur(image.shape[0] / 128))).astype(
        np.float32
    )
    rim = np.clip(_slope(values @ LUMA) / 90, 0, 1)[..., None]
    return _uint8((0.62 * values + 0.38 * 255) * (1 - 0.35 * rim))


def sepia(image: Picture) -> Picture:
    gray = image.astype(np.float32) @ LUMA
    return _uint8(gray[..., None] * np.array([1.0, 0.82, 0.58], np.float32) + 14)


@dataclass(frozen=True)
class Style:
    """One style.

    picture   what captions call such an image: "a pencil drawing"
    apply     the filter
    colors    whether tints of objects remain visible
    least     factor on the minimum object size, so that objects stay recognizable
    """

    picture: str
    apply: Callable[[Picture], Picture]
    colors: bool = False
    least: float = 1.0


STYLES: dict[str, Style] = {
    "color": Style("a picture", color, colors=True),
    "black and white": Style("a black and white photo", black_and_white),
    "pencil": Style("a pencil drawing", pencil),
    "pixelated": Style("a pixelated picture", pixelated, colors=True, least=1.5),
    "watercolor": Style("a watercolor painting", watercolor, colors=True),
    "sepia": Style("an old sepia photo", sepia),
}
