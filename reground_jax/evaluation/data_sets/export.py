"""Cases, and images of them, in COCO's form: for other programs, and as a data set of one's own."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.basics.atomic import write_json, writing_folder
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.data_sets.coco_names import COCO_IDS

INSTANCES, CAPTIONS, IMAGES = "instances.json", "captions.json", "images"


def checksum(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """SHA-256 of an image's size and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def export_coco(
    folder: str | Path,
    cases: Sequence[Case],
    images: Iterable[UInt8[np.ndarray, "H W 3"]] | None = None,
    *,
    size: int = 512,
) -> None:
    """Writes instances.json, captions.json, and the images, if any, to images/ as PNG.

    images: one per case, in order. size: side of the images in pixels, if there are none.

    `data_sets.coco_set` reads the same layouts back, but for boxes under its least area. Objects
    without a box in the layout become crowds, which are no objects to be found, but whose
    categories are known to be there. Categories of COCO have COCO's ids, others ids from 1,001; an
    image has its case's id if all of these are different, otherwise its number.

    Raises ValueError if the folder is not empty, or if there are fewer images than cases.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists: choose a new folder to export to")
    names = sorted({name for case in cases for name in case.counts} - COCO_IDS.keys())
    ids = COCO_IDS | {name: 1001 + i for i, name in enumerate(names)}
    own = [case.layout.id for case in cases]
    if None in own or len(set(own)) < len(own):
        own = list(range(1, len(cases) + 1))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with writing_folder(folder) as part:
        entries = [{"id": _number(name), "width": size, "height": size} for name in own]
        if images is not None:
            _write_images(part, entries, images)
        annotations = [
            _annotation(entry, thing, ids[thing["category"]])
            for entry, case in zip(entries, cases, strict=True)
            for thing in case.facts["objects"]
        ]
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number  # pycocotools takes 0 for "not matched"
        captions = [
            {"id": number, "image_id": entry["id"], "caption": case.layout.prompt}
            for number, (entry, case) in enumerate(zip(entries, cases, strict=True), 1)
        ]
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        instances = {"images": entries, "annotations": annotations, "categories": categories}
        write_json(part / INSTANCES, instances)
        write_json(part / CAPTIONS, {"images": entries, "annotations": captions})


def _number(name: Any) -> Any:
    return int(name) if isinstance(name, str) and name.isdecimal() else name


def _write_images(
    folder: Path, entries: list[dict[str, Any]], images: Iterable[UInt8[np.ndarray, "H W 3"]]
) -> None:
    (folder / IMAGES).mkdir()
    written = 0
    for number, (entry, image) in enumerate(zip(entries, images, strict=False), 1):
        height, width, _ = image.shape
        file = f"{number:06}.png"
        Image.fromarray(image).save(folder / IMAGES / file)
        entry |= {"width": width, "height": height, "file_name": file, "sha256": checksum(image)}
        written = number
    if written < len(entries):
        raise ValueError(f"there are {written} images for {len(entries)} cases: give one for each")


def _annotation(entry: dict[str, Any], thing: dict[str, Any], category: int) -> dict[str, Any]:
    x0, y0, x1, y1 = thing["box"]
    width, height = entry["width"], entry["height"]
    box = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
    return {
        "id": 0,
        "image_id": entry["id"],
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": int(not thing["boxed"]),
    }
