"""COCO key points: 17 joints per person, as in person_keypoints_val2017.json (cocodataset.org).

Persons are prepared as in GLIGEN's training: only joints that are visible (2) and inside the
image's center square count, persons without one are left out, and the 8 with the largest boxes in
the square are kept. An image without any person left is rejected.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.basics.boxes import area
from reground_jax.basics.fields import as_float
from reground_jax.basics.wording import shown
from reground_jax.keypoints import JOINTS, VISIBLE, Person
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt, read_json
from reground_jax.readers.annotated import crop_box
from reground_jax.readers.coco import Split, called, is_coco, join
from reground_jax.readers.pixels import fractions, image_size

MAX_PERSONS = 8


def read_coco_keypoints(
    path: str | Path, captions: str | Path | None = None
) -> Iterator[Layout | Rejected]:
    """One layout per image, with its first caption or an empty prompt; ids are COCO's image ids.

    With captions, an image without one is rejected. Raises ValueError if a file cannot be read or
    is not in COCO's format.
    """
    yield from coco_keypoints_layouts(read_json(path, "COCO"), path, captions)


def is_coco_keypoints(content: Any) -> bool:
    return (
        is_coco(content)
        and isinstance(content["annotations"], list)
        and any(
            isinstance(thing, dict) and "keypoints" in thing for thing in content["annotations"]
        )
    )


def coco_keypoints_layouts(
    content: Any, path: str | Path, captions: str | Path | None = None
) -> Iterator[Layout | Rejected]:
    """`read_coco_keypoints` for the parsed content of a file."""
    if isinstance(content, dict):
        content = {"categories": []} | content  # which this does not read
    texts = None if captions is None else read_json(captions, "COCO")
    split = join(content, path, texts, captions)
    for source, image in split.sources():
        yield attempt(source, _layout, split, image, captions is not None)
    yield from split.strays


def _layout(split: Split, image: Any, with_captions: bool) -> Layout:
    name = split.id_of(image)
    captions = split.captions_of(name)
    if with_captions and not captions:
        raise ValueError("the image has no caption: is the captions file from another split?")
    size = image_size(image)
    persons: list[tuple[float, Person]] = []
    for thing in split.objects_of(name):
        if thing.get("keypoints") is None:  # not a person
            continue
        try:
            person = _person(thing["keypoints"], size)
            if any(person):
                box = crop_box(fractions(thing.get("bbox"), size), size)
                persons.append((area(box), person))
        except ValueError as error:
            raise ValueError(f"{called(thing)}: {error}") from None
    if not persons:
        raise ValueError("no person has a visible joint in the center square of the image")
    persons.sort(key=lambda pair: -pair[0])
    kept = [person for _, person in persons[:MAX_PERSONS]]
    return Layout(captions[0] if captions else "", id=name, keypoints=kept)


def _person(value: Any, size: tuple[float, float]) -> Person:
    """Joints of the center square, in fractions of it."""
    rule = f"it must be x, y and visibility of {len(JOINTS)} joints, in pixels"
    if not isinstance(value, list) or len(value) != 3 * len(JOINTS):
        raise ValueError(f"its keypoints are {shown(value)}: {rule}")
    numbers = [as_float("a number of its keypoints", number, rule) for number in value]
    side = min(size)
    joints = []
    for x, y, visibility in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        if visibility not in (0, 1, 2):
            raise ValueError(f"visibility of a joint is {visibility:g}: it must be 0, 1 or 2")
        u, v = ((p - (length - side) / 2) / side for p, length in zip((x, y), size, strict=True))
        inside = 0 <= u <= 1 and 0 <= v <= 1
        joints.append((u, v) if visibility == VISIBLE and inside else None)
    return tuple(joints)
