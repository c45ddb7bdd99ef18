"""The photographs that COCO's and NSR-1K's cases were written for: what scores can reach."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from reground_jax.basics.wording import plural
from reground_jax.evaluation.cases import Case
from reground_jax.readers.annotated import Annotated, cropped
from reground_jax.readers.pictures import read_picture

FORMATS = (".jpg", ".jpeg", ".png")


def find_photographs(cases: Sequence[Case], folder: str | Path) -> list[Path]:
    """The file of each case's photograph, anywhere in the folder.

    Files are found by COCO's name of them ("val2014/COCO_val2014_000000000139.jpg"). Raises
    ValueError that names the missing ones.
    """
    paths = known_photographs(cases, folder)
    if missing := [case for case, path in zip(cases, paths, strict=True) if path is None]:
        raise ValueError(
            f"{folder} lacks {plural(len(missing), 'photograph')}, the first of them "
            f"{_stem(missing[0])}.jpg: give the folder of COCO's images"
        )
    return [path for path in paths if path is not None]


def known_photographs(cases: Iterable[Case], folder: str | Path) -> list[Path | None]:
    """The same, with None for each that is missing."""
    files = (file for file in sorted(Path(folder).rglob("*")) if file.suffix.lower() in FORMATS)
    known = {file.stem.rpartition("_")[2]: file for file in files}
    return [known.get(_stem(case)) for case in cases]


def read_photograph(path: Path, case: Case, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """The photograph of a case at `size` pixels, by Lanczos.

    Of COCO's cases, the center square, in which their boxes are; of NSR-1K's, the whole image with
    black bars, as its boxes are fractions of that square.
    """
    if "size" not in case.facts:
        square = ImageOps.pad(read_picture(path), (size, size), Image.Resampling.LANCZOS)
        return np.asarray(square)
    entry = Annotated(path, (), (), (), tuple(case.facts["size"]))
    return cropped(entry, "", size=size)[0]


def _stem(case: Case) -> str:
    file = case.facts.get("file")
    if isinstance(file, str):
        return Path(file).stem.rpartition("_")[2]
    return str(case.facts.get("image")).zfill(12)
