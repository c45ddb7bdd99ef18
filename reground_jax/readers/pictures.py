"""Picture files as upright RGB, whatever form they are stored in; nothing is decided silently.

Pillow alone would ignore how the camera was held, clip 16 bits to white, and show whatever colors
lie below transparent pixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

BEHIND = "white"  # what shows through transparent pixels
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow holds these formats' 16 bits in mode "I", too, scaled to 0..65535.
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")


def read_picture(path: Path, annotated_size: tuple[int, int] | None = None) -> Image.Image:
    """The picture in a file, upright, as RGB.

    annotated_size: (width, height) by the annotation file; a picture is not turned if it agrees
    with them only as it is stored. Transparent pixels are laid over white, 16 bits become 8, and of
    an animation the first frame is taken. Raises ValueError that names the file.
    """
    if not path.is_file():  # a pipe or device would keep its reader waiting
        kind = "is not a regular file" if path.exists() else "does not exist"
        raise ValueError(f"cannot read picture {path}: it {kind}")
    try:
        with Image.open(path) as file:
            file.load()
            return _as_rgb(_upright(file, annotated_size), file.format)
    except MemoryError:
        raise
    # Pillow's decoders raise anything for a damaged file: SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise ValueError(f"cannot read picture {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its format is not one that Pillow knows"
    return str(error) or type(error).__name__


def _upright(image: Image.Image, annotated_size: tuple[int, int] | None) -> Image.Image:
    """Turned as the camera was held, unless the annotations are of the picture as stored."""
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata count as none
        return image
    if annotated_size is not None:
        wide = _is_wide(annotated_size)
        if wide == _is_wide(image.size) != _is_wide(turned.size):
            return image
    return turned


def _is_wide(size: tuple[int, int]) -> bool:
    width, height = size
    return width > height


def _as_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and file_format in SIXTEEN_BIT_FORMATS):
        return _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are of mode {image.mode!r}, which says nothing of black and white: "
            "store it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        below = Image.new("RGBA", picture.size, BEHIND)
        return Image.alpha_composite(below, picture).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float32) / 257
    if (clear := image.info.get("transparency")) is not None:
        values[np.asarray(image) == clear] = 255
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
