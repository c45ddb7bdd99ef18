"""Openly licensed emoji artwork: fetched from npm, rasterized, and stored in one .npz file.

    python -m reground_jax.emoji.artwork --out DIR      (needs npm, and `pip install resvg_py`)

writes artwork.npz (pictograms) and artwork.json (packages, versions, licenses) into DIR. They are
needed only for training, not to use a trained model.
"""

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.basics.atomic import write_json
from reground_jax.emoji.categories import CATEGORIES

# npm package and version of each family: SVG icon sets with one file layout and CLDR names.
PACKAGES = {
    "noto": ("@iconify-json/noto", "1.2.9"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
    "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
}
FAMILIES: tuple[str, ...] = tuple(PACKAGES)
# Longer side of a stored pictogram, pixels: no object in a 128-pixel image is larger.
SIDE = 128
# Fainter pixels count as empty: anti-aliased fringes and shadows must not widen a box.
OPAQUE = 48


@dataclass(frozen=True)
class Pictogram:
    """One drawing of one category.

    pixels  RGBA, not premultiplied; cropped to its opaque pixels
    """

    family: str
    code: str
    pixels: UInt8[np.ndarray, "H W 4"]


Artwork = dict[str, tuple[Pictogram, ...]]  # by noun, the clearest pictograms first


def load_artwork(path: str | Path) -> Artwork:
    """Load the artwork that `main` wrote.

    Raises ValueError that names the file and says how to make one.
    """
    how = f"create it with `python -m reground_jax.emoji.artwork --out {Path(path).parent}`"
    artwork: dict[str, list[Pictogram]] = {}
    try:
        with np.load(path) as arrays:
            for name in arrays.files:
                noun, family, code = name.split("|")
                artwork.setdefault(noun, []).append(Pictogram(family, code, arrays[name]))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read emoji artwork {path}: {error}; {how}") from error
    return {noun: tuple(pictograms) for noun, pictograms in artwork.items()}


def save_artwork(artwork: Artwork, path: str | Path) -> None:
    """Write `artwork` as one compressed .npz file, one array per pictogram."""
    arrays: dict[str, Any] = {
        f"{noun}|{pictogram.family}|{pictogram.code}": pictogram.pixels
        for noun, pictograms in artwork.items()
        for pictogram in pictograms
    }
    np.savez_compressed(path, **arrays)


def trimmed(image: Image.Image, side: int = SIDE) -> UInt8[np.ndarray, "H W 4"]:
    """Crop `image` to its opaque pixels and scale its longer side to `side` pixels."""
    box = image.getchannel("A").point([255 * (a >= OPAQUE) for a in range(256)]).getbbox()
    if box is None:
        raise ValueError("pictogram has no opaque pixels: choose another code point")
    scale = side / max(box[2] - box[0], box[3] - box[1])
    size = (round(scale * (box[2] - box[0])), round(scale * (box[3] - box[1])))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box))


def fetch_family(family: str, folder: Path) -> tuple[dict[str, list[Pictogram]], dict[str, Any]]:
    """Fetch one icon set with `npm pack` into `folder`: its pictograms by noun, and its record."""
    package, version = PACKAGES[family]
    command = ["npm", "pack", "--silent", f"{package}@{version}"]
    try:
        archive = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SystemExit("fetching the artwork needs npm, which comes with Node.js") from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"npm cannot fetch {package}: {error.stderr.strip()[-300:]}") from error
    with tarfile.open(folder / archive.stdout.strip()) as files:
        icons, codes, info = (
            json.load(files.extractfile(f"package/{name}.json"))  # type: ignore[arg-type]
            for name in ("icons", "chars", "info")
        )
    pictograms: dict[str, list[Pictogram]] = {}
    for noun, category in CATEGORIES.items():
        for code in category.codes:
            name = codes.get(code) or codes.get(f"{code}-fe0f")
            if name in icons["icons"]:
                pixels = trimmed(_draw(icons, name))
                pictograms.setdefault(noun, []).append(Pictogram(family, code, pixels))
    record = {"package": package, "version": version, "name": info["name"]}
    record |= {"author": info["author"], "license": info["license"]}
    return pictograms, record


def _draw(icons: dict[str, Any], name: str) -> Image.Image:
    try:
        import resvg_py  # imported here because only fetching needs it
    except ModuleNotFoundError as error:
        raise SystemExit(
            "drawing the artwork needs resvg_py: pip install 'reground-jax[train]'"
        ) from error

    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{4 * SIDE}" height="{4 * SIDE}">'
        f"{icon['body']}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def main() -> None:
    """Fetch every family and write artwork.npz and artwork.json."""
    parser = argparse.ArgumentParser(description="Fetch the emoji artwork for training.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Pictogram]] = {noun: [] for noun in CATEGORIES}
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            pictograms, records[family] = fetch_family(family, Path(folder))
            for noun, drawings in pictograms.items():
                found[noun] += drawings
    order = {noun: category.codes.index for noun, category in CATEGORIES.items()}
    artwork = {n: tuple(sorted(found[n], key=lambda p: order[n](p.code))) for n in found}
    if missing := [noun for noun, pictograms in artwork.items() if not pictograms]:
        raise SystemExit(f"no pictogram found for {', '.join(missing)}: check their code points")
    save_artwork(artwork, out / "artwork.npz")
    write_json(out / "artwork.json", records, indent=2)
    print(f"{sum(map(len, artwork.values()))} pictograms of {len(artwork)} categories in {out}")


if __name__ == "__main__":
    main()
