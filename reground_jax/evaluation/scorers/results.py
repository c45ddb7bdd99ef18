"""Detections that another program made, as COCO's results file.

The images that it detected in are those of `export.export_coco`, whose instances.json lies beside
the results. It has a checksum of each image's pixels, by which images are recognized, whatever
condition they are of. The study's photographs are among them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from reground_jax.basics.home import expand_home
from reground_jax.basics.wording import shown
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.data_sets.coco_names import coco_name
from reground_jax.evaluation.data_sets.export import INSTANCES, checksum
from reground_jax.evaluation.scorer import Scorer
from reground_jax.evaluation.scorers.detections import RULES, Detection, Rules, detection_scorer
from reground_jax.readers import id_text, read_json
from reground_jax.readers.pixels import image_size


def results_scorer(
    path: str | Path,
    categories: Sequence[str],
    *,
    name: str = "detector",
    rules: Rules = RULES,
) -> Scorer:
    """The scorer of a results file: a list of {image_id, category_id, bbox, score}.

    bbox is [x, y, width, height] in pixels of the exported image. Raises ValueError if one of the
    two files is missing or invalid, or if its categories lack one of `categories`.
    """
    path = expand_home(path)
    instances = path.parent / INSTANCES
    exported = read_json(instances, "COCO")
    images, sizes = _images(exported, instances)
    names = _names(exported, instances)
    if missing := sorted(set(categories) - set(names.values())):
        raise ValueError(
            f"{instances} does not have {', '.join(missing)}, which the data set asks for: export "
            "the images of this data set"
        )
    found = _detections(read_json(path, "COCO results"), path, sizes, names)

    def find(images_: UInt8[np.ndarray, "B H W 3"], cases: Sequence[Case]) -> list[list[Detection]]:
        result = []
        for image, case in zip(images_, cases, strict=True):
            known = images.get(checksum(image))
            if known is None:
                raise ValueError(
                    f"the image of layout {case.layout.id} is not one of those that {instances} "
                    "lists: export the images again and detect in them"
                )
            result.append(next((found[number] for number in known if number in found), []))
        return result

    digest = hashlib.sha256(path.read_bytes() + instances.read_bytes()).hexdigest()
    return detection_scorer(
        find,
        name=name,
        version=digest,
        rules=rules,
        facts={"detections": str(path)},
        about=f"## The detector\n\nDetections made elsewhere: {path.name}.",
    )


def _images(
    exported: Any, path: Path
) -> tuple[dict[str, list[str]], dict[str, tuple[float, float]]]:
    """The ids of each image by the checksum of its pixels, and (width, height) by id.

    Equal images are common: without boxes, all wirings make the same.
    """
    entries = exported.get("images") if isinstance(exported, dict) else None
    images: dict[str, list[str]] = defaultdict(list)
    sizes = {}
    for entry in entries if isinstance(entries, list) else ():
        match entry:
            case {"id": number, "sha256": str(digest)} if id_text(number) is not None:
                images[digest].append(str(id_text(number)))
                sizes[images[digest][-1]] = image_size(entry)
    if not images:
        raise ValueError(
            f"{path} lists no image with its checksum: export the images with `evaluate --export "
            "DIR`, and put the results beside it"
        )
    return images, sizes


def _names(exported: Any, path: Path) -> dict[str, str]:
    match exported:
        case {"categories": [*entries]}:
            pairs = [(e.get("id"), e.get("name")) for e in entries if isinstance(e, dict)]
            return {str(id_text(i)): coco_name(name) for i, name in pairs if isinstance(name, str)}
    raise ValueError(f"{path} has no list of categories")


def _detections(
    content: Any, path: Path, sizes: dict[str, tuple[float, float]], names: dict[str, str]
) -> dict[str, list[Detection]]:
    """By image id. An image without any has none."""
    if not isinstance(content, list):
        raise ValueError(f"{path} is not a list of detections: give a COCO results file")
    found: dict[str, list[Detection]] = defaultdict(list)
    for number, entry in enumerate(content, 1):
        try:
            image, detection = _detection(entry, sizes, names)
        except ValueError as error:
            raise ValueError(f"{path}, detection {number}: {error}") from None
        found[image].append(detection)
    return found


def _detection(
    entry: Any, sizes: dict[str, tuple[float, float]], names: dict[str, str]
) -> tuple[str, Detection]:
    match entry:
        case {"image_id": image, "category_id": category, "bbox": [x, y, w, h], "score": score}:
            pass
        case _:
            raise ValueError(f"it is {shown(entry)}: expected image_id, category_id, bbox, score")
    if (size := sizes.get(id_text(image) or "")) is None:
        raise ValueError(f"its image_id is {shown(image)}, which was not exported")
    if (name := names.get(id_text(category) or "")) is None:
        raise ValueError(f"its category_id is {shown(category)}, which was not exported")
    numbers = (x, y, w, h, score)
    if not all(isinstance(v, int | float) and np.isfinite(v) for v in numbers):
        raise ValueError(f"its bbox and score must be finite numbers: {shown(entry)}")
    width, height = size
    box = (x / width, y / height, (x + w) / width, (y + h) / height)
    return str(id_text(image)), Detection(name, float(score), box)
