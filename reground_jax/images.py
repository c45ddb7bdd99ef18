"""Decoded images -> uint8 -> PNG files that record how they were made, and back.

The PNG's text chunk "reground" is JSON: layout, settings, seed, checkpoint. It is all that
`generate --from image.png` needs. Host side only: arrays here are NumPy arrays.
"""

import errno
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin

from reground_jax.basics import atomic
from reground_jax.basics.fields import as_int, check_name, check_range
from reground_jax.basics.json_text import parse_json
from reground_jax.basics.png_text import NotPNG, read_png_text
from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.settings import MAX_SEED, Settings
from reground_jax.version import __version__

CHUNK = "reground"
FORMAT = 1  # of the JSON in the chunk; incremented when older readers would misread it
MAX_TEXT = 2**22  # bytes of the chunk: far above 1024 boxes with long phrases
LONGEST_REASON = 400  # characters; errors quote the recipe, which may be of any length


@dataclass(frozen=True)
class Recipe:
    """How one image was made: enough to reproduce it from the same checkpoint.

    checkpoint is the name or path that the model was loaded from, as given; checksum is the model's
    (`Description.checksum`), or only that of its arrays in older files. None if unknown.
    """

    layout: Layout
    settings: Settings
    seed: int
    checkpoint: str | None = None
    checksum: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` returns an equal Recipe."""
        return {
            "format": FORMAT,
            "software": f"reground-jax {__version__}",
            "layout": self.layout.to_json(),
            "settings": self.settings.to_json(),
            "seed": int(self.seed),  # json cannot encode NumPy integers
            "checkpoint": self.checkpoint,
            "checksum": self.checksum,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Recipe":
        """Inverse of `to_json`. Raises ValueError saying what is wrong."""
        form = value.get("format") if isinstance(value, dict) else None
        if type(form) is not int or form != FORMAT:  # true and 1.0 equal 1
            raise ValueError(
                f"recipe has format {shown(form)}, this version reads {FORMAT}: "
                "use the version of reground-jax that wrote it"
            )
        if missing := [name for name in ("layout", "settings", "seed") if name not in value]:
            raise ValueError(f"recipe has no {', '.join(missing)}: it was edited or truncated")
        names = {name: value.get(name) for name in ("checkpoint", "checksum")}
        for name, text in names.items():
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{name} is {shown(text)}: it must be a string or null")
        seed = as_int("seed", value["seed"])
        check_range("seed", seed, 0, MAX_SEED)
        layout = Layout.from_json(value["layout"])
        for name, picture in layout.pictures.items():
            if not picture.has_checksum:  # a stranger's recipe must not read just any file
                raise ValueError(f"{name} of {layout.name} has no sha256: the recipe was edited")
        return cls(layout, Settings.from_json(value["settings"]), seed, **names)


def to_uint8(
    images: Float[np.ndarray, "B H W C"], *, value_range: str = "-1..1", dtype: str | None = None
) -> UInt8[np.ndarray, "B H W C"]:
    """Float images in -1..1 (the VAE's output) or 0..1 -> 0..255, clipped and rounded.

    Rounds half to even in float32, as diffusers' VaeImageProcessor does; the original GLIGEN code
    truncates, which darkens an image by half a level. dtype: the compute dtype, for the error
    message. Raises ValueError for NaN or infinity, which clipping must not hide, and for an unknown
    `value_range`.
    """
    check_name("value_range", value_range, ("-1..1", "0..1"))
    values = np.asarray(images, np.float32)
    finite = np.isfinite(values).all(axis=(1, 2, 3))
    if not finite.all():
        way_out = "check the weights with `reground-jax info MODEL --check`, lower guidance_scale"
        if dtype not in (None, "float32"):
            way_out += ", or use dtype='float32'"
        raise ValueError(
            f"image {int(np.argmin(finite)) + 1} of {len(values)} holds NaN or infinity: so do the "
            f"model's weights, or the arithmetic overflowed; {way_out}"
        )
    if value_range == "-1..1":
        values = values * np.float32(0.5) + np.float32(0.5)
    return (np.clip(values, 0, 1) * np.float32(255)).round().astype(np.uint8)


def from_uint8(pixels: UInt8[Any, "*B H W 3"]) -> Float[Any, "*B H W 3"]:
    """0..255 -> -1..1, float32, as the networks expect; for NumPy or JAX arrays."""
    return pixels.astype(np.float32) / 127.5 - 1


def save_png(
    path: str | Path, image: UInt8[np.ndarray, "H W 3"] | Image.Image, recipe: Recipe | None = None
) -> None:
    """Write a PNG, with its recipe inside if there is one. Missing folders are created.

    The file is written atomically (see atomic.py). Raises ValueError if the name does not end in
    .png, and OSError naming the path if it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"cannot write {path}: only PNG keeps the recipe exactly; name it *.png")
    atomic.write_bytes(path, encode_png(image, recipe))


def check_writable(path: Path) -> None:
    """Raises OSError if `path` cannot be written, to fail before the work. Creates folders."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with atomic.aside(path) as part:
        part.touch(exist_ok=False)


def encode_png(
    image: UInt8[np.ndarray, "H W 3"] | Image.Image, recipe: Recipe | None = None
) -> bytes:
    """The bytes of a PNG file, with its recipe inside if there is one."""
    info = PngImagePlugin.PngInfo()
    if recipe is not None:
        # ASCII (\u escapes): any prompt then fits the plain text chunk, which every tool shows.
        info.add_text(CHUNK, json.dumps(recipe.to_json()))
    encoded = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(encoded, format="PNG", pnginfo=info)
    return encoded.getvalue()


def read_recipe(path: str | Path) -> Recipe:
    """The recipe inside a PNG; the pixels are not decoded.

    Raises ValueError naming the file if there is none. Names, sizes and texts in a recipe are
    untrusted input.
    """
    try:
        text = read_png_text(Path(path), CHUNK, MAX_TEXT)
    except NotPNG:
        raise ValueError(f"{path} is not a PNG image: give one that reground-jax wrote") from None
    except OSError as error:
        raise ValueError(f"cannot read image {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"cannot read image {path}: {error}") from error
    if text is None:
        raise ValueError(
            f"{path} has no '{CHUNK}' text chunk: it was not written by reground-jax, or another "
            "program saved it without the chunk; use the original PNG"
        )
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"the '{CHUNK}' text in {path} is not JSON: {error}") from error
    try:
        return Recipe.from_json(value)
    except ValueError as error:
        reason = str(error)[:LONGEST_REASON]
        raise ValueError(f"the '{CHUNK}' text in {path} cannot be used: {reason}") from error
