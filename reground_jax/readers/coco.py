"""COCO annotations: instances (boxes x, y, width, height in pixels) and captions, joined by image.

The two JSON files of a split, such as instances_train2017.json and captions_train2017.json
(cocodataset.org, "Data format"). A phrase is the category's name with an article, like NSR-1K's.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.layout import Layout
from reground_jax.readers import Rejected, read_json
from reground_jax.readers.annotated import MAX_BOXES, Annotated, crop_box, largest
from reground_jax.readers.nsr1k import phrase


def read_coco(
    instances: str | Path, captions: str | Path | None, images: str | Path
) -> Iterator[Annotated | Rejected]:
    """The images of a split in the order of the instances file, crowds left out.

    images: the folder of the image files. captions: None for a split without them.
    Raises ValueError if a file cannot be read or is not of COCO's form.
    """
    for image, objects, texts, names in _images(instances, captions):
        try:
            yield _entry(image, objects, texts, names, Path(images))
        except (ValueError, KeyError) as error:
            yield Rejected(source=f"{instances}, image {image.get('id')}", reason=str(error))


def read_coco_layouts(instances: str | Path, captions: str | Path) -> Iterator[Layout | Rejected]:
    """A layout per image: its first caption, and its boxes by GLIGEN's rules (annotated.py).

    Boxes are those of the image's middle square, without crowds and without those under 1 % of the
    square, the 30 largest, largest first; ids are COCO's image ids. An image without a caption is a
    Rejected. Raises ValueError if a file cannot be read or is not of COCO's form.
    """
    for image, objects, texts, names in _images(instances, captions):
        try:
            if not texts:
                raise ValueError("the image has no caption: is the captions file another split's?")
            entry = _entry(image, objects, texts, names, Path())
            boxes = [crop_box(box, (image["width"], image["height"])) for box in entry.boxes]
            kept = largest(boxes, MAX_BOXES)
            yield Layout(
                prompt=texts[0],
                phrases=[entry.phrases[i] for i in kept],
                boxes=[boxes[i] for i in kept],
                id=str(image["id"]),
            )
        except (ValueError, KeyError) as error:
            yield Rejected(source=f"{instances}, image {image.get('id')}", reason=str(error))


def _images(
    instances: str | Path, captions: str | Path | None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], list[str], dict[int, str]]]:
    """(image, its objects without crowds, its captions, category names), file order."""
    content = _load(instances, ("images", "annotations", "categories"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):  # a crowd's box is around many things of one name
            objects[annotation["image_id"]].append(annotation)
    texts: dict[int, list[str]] = defaultdict(list)
    if captions is not None:
        for annotation in _load(captions, ("annotations",))["annotations"]:
            texts[annotation["image_id"]].append(annotation["caption"].strip())
    for image in content["images"]:
        yield image, objects[image["id"]], texts[image["id"]], names


def _entry(
    image: dict[str, Any],
    objects: list[dict[str, Any]],
    captions: list[str],
    names: dict[int, str],
    folder: Path,
) -> Annotated:
    width, height = image["width"], image["height"]
    boxes = []
    for thing in objects:
        x, y, w, h = thing["bbox"]
        edges = (x / width, y / height, (x + w) / width, (y + h) / height)
        # COCO's boxes overhang the image by fractions of a pixel.
        boxes.append([min(max(edge, 0.0), 1.0) for edge in edges])
    phrases = [phrase(names[thing["category_id"]]) for thing in objects]
    layout = Layout(prompt="", phrases=phrases, boxes=boxes, id=image["file_name"])
    path = folder / image["file_name"]
    return Annotated(path, tuple(captions), layout.phrases, layout.boxes, (width, height))


def _load(path: str | Path, parts: tuple[str, ...]) -> dict[str, Any]:
    content = read_json(path, "COCO")
    if not isinstance(content, dict) or any(part not in content for part in parts):
        raise ValueError(
            f"COCO file {path} lacks {' or '.join(parts)}: is it another annotation file?"
        )
    return content
