"""COCO annotations: instances (boxes x, y, width, height in pixels) and captions, joined by image.

Reads the two JSON files of a split, such as instances_train2017.json and captions_train2017.json
(cocodataset.org, "Data format"), and other datasets in that format, such as LVIS. A phrase is the
category's name with an article, as in NSR-1K.

An image with anything wrong about it or its annotations is rejected, because it would otherwise be
trained on, or generated, with only some of its boxes. Annotations that belong to no image come
last, with one Rejected for each image that they name. Captions of images that are not in the
instances file are ignored, as it may hold only part of the split.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from reground_jax.basics.boxes import area
from reground_jax.basics.wording import plural, shown
from reground_jax.layout import Layout
from reground_jax.layout_fields import Box
from reground_jax.readers import Rejected, attempt, id_text, read_json
from reground_jax.readers.annotated import MAX_BOXES, Annotated, crop_box, largest
from reground_jax.readers.nsr1k import category_of, phrase
from reground_jax.readers.pixels import fractions, image_size

Record = dict[str, Any]


def read_coco(
    instances: str | Path, captions: str | Path | None, images: str | Path
) -> Iterator[Annotated | Rejected]:
    """The images of a split in the order of the instances file, without crowds.

    images: the folder of the image files. captions: None for a split without them.
    Raises ValueError if a file cannot be read or is not in COCO's format.
    """
    texts = None if captions is None else read_json(captions, "COCO")
    split = join(read_json(instances, "COCO"), instances, texts, captions)
    for source, image in split.sources():
        yield attempt(source, _annotated, split, image, Path(images))
    yield from split.strays


def read_coco_layouts(instances: str | Path, captions: str | Path) -> Iterator[Layout | Rejected]:
    """One layout per image: its first caption, and its boxes under GLIGEN's rules (annotated.py).

    Boxes are those in the image's center square, without crowds and without those under 1 % of the
    square: the 30 largest, largest first. Ids are COCO's image ids. An image without a caption is
    rejected. Raises ValueError if a file cannot be read or is not in COCO's format.
    """
    yield from coco_layouts(read_json(instances, "COCO"), instances, captions)


def is_coco(content: Any) -> bool:
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def coco_layouts(
    content: Any, path: str | Path, captions: str | Path
) -> Iterator[Layout | Rejected]:
    """`read_coco_layouts` for the parsed content of an instances file."""
    split = join(content, path, read_json(captions, "COCO"), captions)
    for source, image in split.sources():
        yield attempt(source, _layout, split, image)
    yield from split.strays


@dataclass(frozen=True)
class Split:
    """The content of the files, unchecked, keyed by ids as strings.

    images: as listed. same: images by id. categories: all names by id, of which there should be
    one. strays: annotations that belong to no image.
    """

    path: str | Path
    images: list[Any]
    same: dict[str | None, list[Record]]
    categories: dict[str | None, list[Any]]
    objects: dict[str, list[Record]]
    captions: dict[str, list[Record]]
    strays: list[Rejected]

    def sources(self) -> Iterator[tuple[str, Any]]:
        """(name in messages, image) for each image, in file order."""
        for number, image in enumerate(self.images, 1):
            name = id_text(image.get("id")) if isinstance(image, dict) else None
            yield f"{self.path}, image {name or f'number {number}'}", image

    def id_of(self, image: Any) -> str:
        """Raises ValueError if the image is not an object with its own id."""
        name = id_text(_record(image).get("id"))
        if name is None:
            raise ValueError(f"its id is {shown(image.get('id'))}: it must be a whole number")
        same = self.same[name]
        if len(same) > 1 and not (image is same[0] and all(other == image for other in same)):
            raise ValueError(f"its id appears {len(same)} times: give each image its own")
        return name

    def captions_of(self, name: str) -> tuple[str, ...]:
        captions = []
        for annotation in self.captions.get(name, ()):
            text = annotation.get("caption")
            if not isinstance(text, str):
                raise ValueError(
                    f"caption of {called(annotation)} is {shown(text)}: it must be a string"
                )
            captions.append(text.strip())
        return tuple(captions)

    def objects_of(self, name: str) -> Iterator[Record]:
        """The annotations of an image, without crowds, whose boxes surround many objects."""
        seen: dict[str, Record] = {}
        for thing in self.objects.get(name, ()):
            if _is_crowd(thing):
                continue
            number = id_text(thing.get("id"))
            if number is not None and seen.setdefault(number, thing) is not thing:
                if seen[number] == thing:
                    raise ValueError(f"{called(thing)} appears twice: leave one of them out")
            yield thing

    def grounding_of(self, image: Record, name: str) -> Layout:
        """Phrases and boxes of the whole image, before any crop."""
        size = image_size(image)
        phrases, boxes = [], []
        for thing in self.objects_of(name):
            try:
                phrases.append(phrase(self._category(thing)))
                boxes.append(fractions(thing.get("bbox"), size))
            except ValueError as error:
                raise ValueError(f"{called(thing)}: {error}") from None
        return Layout("", phrases, boxes, id=name)

    def named(self, name: str) -> frozenset[str]:
        """The categories of all annotations of an image, crowds included."""
        ids = (id_text(thing.get("category_id")) for thing in self.objects.get(name, ()))
        names = (called for number in ids for called in self.categories.get(number, ()))
        return frozenset(category_of(phrase(called)) for called in names if isinstance(called, str))

    def _category(self, thing: Record) -> str:
        given = thing.get("category_id")
        names = self.categories.get(id_text(given), [])
        if not names:
            raise ValueError(f"its category_id is {shown(given)}, which is not in categories")
        if any(name != names[0] for name in names):
            raise ValueError(f"its category {given} has several names: {shown(names)}")
        if not isinstance(names[0], str) or phrase(names[0]) == "a ":
            raise ValueError(
                f"the name of its category {given} is {shown(names[0])}: it must be a string"
            )
        return names[0]


def called(annotation: Record) -> str:
    """An annotation's name in messages."""
    return f"annotation {shown(annotation.get('id'))}"


def join(
    instances: Any, path: str | Path, captions: Any, captions_path: str | Path | None
) -> Split:
    """captions: the content of the captions file, None if there is no such file."""
    images, annotations, categories = _lists(
        instances, path, ("images", "annotations", "categories")
    )
    same: dict[str | None, list[Record]] = defaultdict(list)
    for image in images:
        if isinstance(image, dict):
            same[id_text(image.get("id"))].append(image)
    names: dict[str | None, list[Any]] = defaultdict(list)
    for category in categories:
        if isinstance(category, dict) and (name := id_text(category.get("id"))) is not None:
            names[name].append(category.get("name"))
    objects, strays = _by_image(annotations, f"{path}, annotation")
    for name in [name for name in objects if name not in same]:
        strays.append(_unknown_image(path, name, objects.pop(name)))
    texts: dict[str, list[Record]] = {}
    if captions is not None:
        (captions,) = _lists(captions, captions_path, ("annotations",))
        texts, more = _by_image(captions, f"{path}, caption")
        strays += more
    return Split(path, images, dict(same), names, objects, texts, strays)


def _lists(content: Any, path: str | Path | None, parts: tuple[str, ...]) -> list[list[Any]]:
    if not isinstance(content, dict) or any(part not in content for part in parts):
        raise ValueError(
            f"COCO file {path} lacks {' or '.join(parts)}: is it another annotation file?"
        )
    for part in parts:
        if not isinstance(content[part], list):
            raise ValueError(
                f"{part} of COCO file {path} is {shown(content[part])}: it must be a list"
            )
    return [content[part] for part in parts]


def _by_image(
    annotations: Iterable[Any], called: str
) -> tuple[dict[str, list[Record]], list[Rejected]]:
    """Annotations by image, and those without one. called: their name before their number."""
    found: dict[str, list[Record]] = defaultdict(list)
    strays = []
    for number, annotation in enumerate(annotations, 1):
        image = annotation.get("image_id") if isinstance(annotation, dict) else None
        name = id_text(image)
        if name is not None:
            found[name].append(annotation)
        elif isinstance(annotation, dict):
            reason = f"its image_id is {shown(image)}: it must be the id of an image"
            strays.append(Rejected(f"{called} number {number}", reason))
        else:
            reason = f"it is {shown(annotation)}: expected an object"
            strays.append(Rejected(f"{called} number {number}", reason))
    return dict(found), strays


def _unknown_image(path: str | Path, name: str, annotations: list[Record]) -> Rejected:
    return Rejected(
        f"{path}, image {shown(name)}",
        f"{plural(len(annotations), 'annotation')}, the first of them {called(annotations[0])}, "
        "of this image_id, which is not in images",
    )


def _record(value: Any) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"it is {shown(value)}: expected an object")
    return value


def _is_crowd(annotation: Record) -> bool:
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise ValueError(f"iscrowd of {called(annotation)} is {shown(crowd)}: it must be 0 or 1")
    return bool(crowd)


def _annotated(split: Split, image: Any, folder: Path) -> Annotated:
    name = split.id_of(image)
    file = image.get("file_name")
    if not isinstance(file, str) or not file:
        raise ValueError(f"its file_name is {shown(file)}: it must be the name of a file")
    grounding = split.grounding_of(image, name)
    captions = split.captions_of(name)
    Layout("\n".join(captions))  # checks all of them
    width, height = map(round, image_size(image))
    size = (width, height)
    return Annotated(folder / file, captions, grounding.phrases, grounding.boxes, size)


def _layout(split: Split, image: Any) -> Layout:
    return square_of(split, image).layout


class Square(NamedTuple):
    """What the center square of an image holds.

    layout  the first caption, and boxes under GLIGEN's rules
    others  (category, box) of the objects in the square that are no boxes of the layout
    named   every category that is annotated anywhere in the image, crowds included
    """

    layout: Layout
    others: tuple[tuple[str, Box], ...]
    named: frozenset[str]


def square_of(split: Split, image: Any) -> Square:
    """Raises ValueError if anything is wrong with the image or its annotations."""
    name = split.id_of(image)
    captions = split.captions_of(name)
    if not captions:
        raise ValueError("the image has no caption: is the captions file from another split?")
    whole = split.grounding_of(image, name)
    boxes = [crop_box(box, (image["width"], image["height"])) for box in whole.boxes]
    kept = largest(boxes, MAX_BOXES)
    layout = Layout(
        prompt=captions[0],
        phrases=[whole.phrases[i] for i in kept],
        boxes=[boxes[i] for i in kept],
        id=name,
    )
    others = [
        (category_of(str(text)), box)
        for i, (text, box) in enumerate(zip(whole.phrases, boxes, strict=True))
        if i not in kept and area(box) > 0
    ]
    return Square(layout, tuple(others), split.named(name))
