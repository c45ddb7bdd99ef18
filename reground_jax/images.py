"""Decoded images -> uint8 -> PNG files that say how they were made, and back.

The PNG's text chunk "reground" is JSON: layout, settings, seed, checkpoint. It is all that
`generate --from image.png` needs. Host side only: arrays here are numpy's.
"""

import io
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from reground_jax.layout import Layout
from reground_jax.settings import Settings, check_name
from reground_jax.version import __version__

CHUNK = "reground"
FORMAT = 1  # of the JSON in the chunk; raised when a reader of the old form would misread it


@dataclass(frozen=True)
class Recipe:
    """What made one image: enough to make it again from the same checkpoint.

    checkpoint is the name or path that the model was loaded from, as given; checksum is that of its
    arrays. None if unknown.
    """

    layout: Layout
    settings: Settings
    seed: int
    checkpoint: str | None = None
    checksum: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "software": f"reground-jax {__version__}",
            "layout": self.layout.to_json(),
            "settings": self.settings.to_json(),
            "seed": int(self.seed),  # JSON knows no numpy integers
            "checkpoint": self.checkpoint,
            "checksum": self.checksum,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Recipe":
        """Inverse of `to_json`. Raises ValueError that says what is wrong."""
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            form = value.get("format") if isinstance(value, dict) else None
            raise ValueError(
                f"recipe has format {form!r}, this version reads {FORMAT}: "
                "use the version of reground-jax that wrote it"
            )
        if missing := [name for name in ("layout", "settings", "seed") if name not in value]:
            raise ValueError(f"recipe lacks {', '.join(missing)}: the file was edited or cut")
        return cls(
            layout=Layout.from_json(value["layout"]),
            settings=Settings.from_json(value["settings"]),
            seed=value["seed"],
            checkpoint=value.get("checkpoint"),
            checksum=value.get("checksum"),
        )


def to_uint8(
    images: Float[np.ndarray, "B H W C"], *, value_range: str = "-1..1"
) -> UInt8[np.ndarray, "B H W C"]:
    """Float images in -1..1 (the VAE's output) or 0..1 -> 0..255, clipped and rounded.

    Rounds half to even in float32, as diffusers' VaeImageProcessor does; the original GLIGEN code
    truncates, which darkens an image by half a level. Raises ValueError on NaN or infinity, which
    no clipping may hide, and on another `value_range`.
    """
    check_name("value_range", value_range, ("-1..1", "0..1"))
    values = np.asarray(images, np.float32)
    finite = np.isfinite(values).all(axis=(1, 2, 3))
    if not finite.all():
        raise ValueError(
            f"image {int(np.argmin(finite)) + 1} of {len(values)} holds NaN or infinity: "
            "the model or its dtype overflowed; try dtype='float32'"
        )
    if value_range == "-1..1":
        values = values * np.float32(0.5) + np.float32(0.5)
    return (np.clip(values, 0, 1) * np.float32(255)).round().astype(np.uint8)


def save_png(
    path: str | Path, image: UInt8[np.ndarray, "H W 3"] | Image.Image, recipe: Recipe | None = None
) -> None:
    """Write a PNG, with its recipe inside if there is one. Folders are made where needed.

    The file appears whole or not at all: it is written under a hidden name in the same folder,
    flushed to disk, then renamed. Raises ValueError if the name does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"cannot write {path}: only PNG keeps the recipe exactly; name it *.png")
    encoded = encode_png(image, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def encode_png(
    image: UInt8[np.ndarray, "H W 3"] | Image.Image, recipe: Recipe | None = None
) -> bytes:
    """A PNG file's bytes, with its recipe inside if there is one."""
    info = PngImagePlugin.PngInfo()
    if recipe is not None:
        # ASCII (\u escapes), so that the plain text chunk that every tool shows holds any prompt.
        info.add_text(CHUNK, json.dumps(recipe.to_json()))
    encoded = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(encoded, format="PNG", pnginfo=info)
    return encoded.getvalue()


def read_recipe(path: str | Path) -> Recipe:
    """The recipe inside a PNG. Raises ValueError that names the file where there is none."""
    try:
        with Image.open(path) as picture:
            picture.load()  # text chunks may stand after the pixels
            text = picture.info.get(CHUNK)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image: give a PNG that reground-jax wrote") from error
    except (OSError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read image {path}: {reason}") from error
    if text is None:
        raise ValueError(
            f"{path} has no '{CHUNK}' text inside: it was not written by reground-jax, or another "
            "program saved it again without it; use the original PNG"
        )
    try:
        return Recipe.from_json(json.loads(text))
    except ValueError as error:
        raise ValueError(f"the '{CHUNK}' text in {path} cannot be used: {error}") from error
