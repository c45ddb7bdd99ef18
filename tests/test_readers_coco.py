"""COCO files with bad values: images are read whole or rejected; no annotation is lost silently."""

import json
from pathlib import Path

import pytest

from reground_jax.layout import Layout
from reground_jax.readers import Rejected
from reground_jax.readers.annotated import Annotated
from reground_jax.readers.coco import read_coco, read_coco_layouts

CASES = Path(__file__).parent / "data/cases"
NAN = float("nan")


def image(number: object, **changes) -> dict:
    return {"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 100} | changes


def box(number: int, image_id: object, **changes) -> dict:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [10, 10, 50, 50],
    } | changes


def without(value: dict, name: str) -> dict:
    return {key: part for key, part in value.items() if key != name}


def write(folder: Path, images=None, annotations=None, categories=None, captions=None):
    """Files of images 1 and 2 with a box and a caption each, except for what is given."""
    content = {
        "images": [image(1), image(2)] if images is None else images,
        "annotations": [box(11, 1), box(12, 2)] if annotations is None else annotations,
        "categories": [{"id": 1, "name": "dog"}] if categories is None else categories,
    }
    texts = [{"id": 7 + i, "image_id": i, "caption": f"dog {i}"} for i in (1, 2)]
    paths = folder / "instances.json", folder / "captions.json"
    paths[0].write_text(json.dumps(content))
    paths[1].write_text(json.dumps({"annotations": texts if captions is None else captions}))
    return paths


def read(paths) -> tuple[list[Layout], list[Rejected]]:
    entries = list(read_coco_layouts(*paths))
    layouts = [entry for entry in entries if isinstance(entry, Layout)]
    return layouts, [entry for entry in entries if isinstance(entry, Rejected)]


def test_images_with_bad_values_are_rejected_by_field_and_the_others_are_read():
    folder = CASES / "coco-bad-image"
    layouts, rejected = read((folder / "instances.json", folder / "captions.json"))
    assert [layout.id for layout in layouts] == ["1", "4"]
    assert layouts[0].boxes == ((0.1, 0.1, 0.6, 0.6),) and layouts[0].phrases == ("a dog",)
    second, third = rejected
    assert second.source.endswith("instances.json, image 2")
    assert second.reason == "its width is 0: it must be a number of pixels above 0"
    assert third.source.endswith("image 3")
    assert third.reason == (
        "annotation 3: its bbox is None: it must be x, y, width, height, four numbers of pixels"
    )


def test_an_annotation_of_an_unknown_image_is_reported_and_ids_join_as_texts():
    folder = CASES / "coco-lost-boxes"
    layouts, (stray,) = read((folder / "instances.json", folder / "captions.json"))
    assert [layout.id for layout in layouts] == ["1", "2"]
    assert [len(layout.boxes) for layout in layouts] == [0, 1]  # "2" is image 2
    assert stray.source.endswith("instances.json, image '999'")
    assert stray.reason.startswith("1 annotation, the first of them annotation 1, of this image_id")


@pytest.mark.parametrize(
    ("dirty", "reason"),
    [
        (image(1, width=None), "its width is None"),
        (image(1, height="100"), "its height is '100'"),
        (image(1, height=-3), "its height is -3"),
        (image(1, width=True), "its width is True"),
        (image(1, width=NAN), "its width is nan"),
        (without(image(1), "height"), "its height is None"),
        (image(1, width=10**400), "its width is 1000"),
    ],
)
def test_a_size_that_is_none_is_named(tmp_path, dirty, reason):
    layouts, (rejected,) = read(write(tmp_path, images=[dirty, image(2)]))
    assert [layout.id for layout in layouts] == ["2"]
    assert rejected.source.endswith("image 1") and rejected.reason.startswith(reason)


@pytest.mark.parametrize(
    ("dirty", "reason"),
    [
        (box(11, 1, bbox=["1", "2", "3", "4"]), "its bbox is ['1', '2', '3', '4']"),
        (box(11, 1, bbox=[1, 2, 3]), "its bbox is [1, 2, 3]"),
        (box(11, 1, bbox=[1, 2, NAN, 4]), "its bbox is [1, 2, nan, 4]"),
        (box(11, 1, bbox=[1, 2, float("inf"), 4]), "its bbox is [1, 2, inf, 4]"),
        (box(11, 1, bbox={"x": 1}), "its bbox is {'x': 1}"),
        (box(11, 1, bbox=[50, 50, -20, 10]), "width and height must not be negative"),
        (box(11, 1, bbox=[500, 50, 20, 10]), "it lies outside the image, of 100 x 100 pixels"),
        (without(box(11, 1), "bbox"), "its bbox is None"),
        (box(11, 1, category_id=99), "its category_id is 99, which is not in categories"),
        (box(11, 1, category_id=[1]), "its category_id is [1], which is not in categories"),
        (without(box(11, 1), "category_id"), "its category_id is None"),
        (box(11, 1, iscrowd="0"), "iscrowd of annotation 11 is '0': it must be 0 or 1"),
    ],
)
def test_an_annotation_that_cannot_be_read_rejects_its_image_by_its_number(tmp_path, dirty, reason):
    layouts, (rejected,) = read(write(tmp_path, annotations=[dirty, box(12, 2)]))
    assert [layout.id for layout in layouts] == ["2"]
    assert rejected.source.endswith("image 1")
    assert "annotation 11" in rejected.reason and reason in rejected.reason


def test_annotations_that_name_no_image_are_reported(tmp_path):
    dirty = [None, "box", without(box(13, 1), "image_id"), box(14, None), box(15, [2])]
    layouts, rejected = read(write(tmp_path, annotations=[box(11, 1), *dirty]))
    assert [len(layout.boxes) for layout in layouts] == [1, 0]
    assert len(rejected) == len(dirty)
    assert rejected[0].source.endswith("annotation number 2")
    assert rejected[2].reason == "its image_id is None: it must be the id of an image"


def test_annotations_of_unknown_images_are_one_report_an_image(tmp_path):
    dirty = [box(13, 3), box(14, 3), box(15, 4)]
    _, rejected = read(write(tmp_path, annotations=[box(11, 1), *dirty]))
    assert [entry.reason.split(",")[0] for entry in rejected] == ["2 annotations", "1 annotation"]


@pytest.mark.parametrize("caption", [None, 5, ["a dog"]])
def test_a_caption_that_is_no_text_rejects_its_image(tmp_path, caption):
    captions = [{"id": 7, "image_id": 1, "caption": caption}, {"image_id": 2, "caption": "a dog"}]
    layouts, (rejected,) = read(write(tmp_path, captions=captions))
    assert [layout.id for layout in layouts] == ["2"]
    assert rejected.reason == f"caption of annotation 7 is {caption!r}: it must be a string"


def test_captions_of_no_image_are_reported_and_those_of_other_images_are_left_out(tmp_path):
    captions = [{"image_id": i, "caption": "a dog"} for i in (1, 2, 3, None)]
    layouts, (rejected,) = read(write(tmp_path, captions=captions))
    assert len(layouts) == 2
    assert rejected.source.endswith("instances.json, caption number 4")


@pytest.mark.parametrize(
    ("categories", "reason"),
    [
        ([{"id": 1, "name": None}], "the name of its category 1 is None"),
        ([{"id": 1, "name": " - "}], "the name of its category 1 is ' - '"),
        ([{"id": 1}], "the name of its category 1 is None"),
        ([{"id": 1, "name": "dog"}, {"id": 1, "name": "cat"}], "has several names: ['dog', 'cat']"),
        ([None, {"name": "dog"}, "dog"], "its category_id is 1, which is not in categories"),
    ],
)
def test_a_category_without_one_name_rejects_the_images_that_have_it(tmp_path, categories, reason):
    categories = [*categories, {"id": 2, "name": "cat"}]
    annotations = [box(11, 1), box(12, 2, category_id=2.0)]
    layouts, (rejected,) = read(write(tmp_path, annotations=annotations, categories=categories))
    assert [layout.phrases for layout in layouts] == [("a cat",)]
    assert reason in rejected.reason


@pytest.mark.parametrize("number", [None, [1], True, 1.5])
def test_an_image_without_an_id_is_named_by_its_place(tmp_path, number):
    layouts, rejected = read(write(tmp_path, images=[image(2), image(number), "x"]))
    assert [layout.id for layout in layouts] == ["2"]
    assert rejected[0].source.endswith("image number 2") and "its id is" in rejected[0].reason
    assert rejected[1].source.endswith("image number 3")
    assert "1 annotation" in rejected[2].reason  # image 1 is not there now


def test_an_image_that_is_listed_twice_is_read_once_and_two_images_of_one_id_not_at_all(tmp_path):
    layouts, (again,) = read(write(tmp_path, images=[image(1), image(2), image(1)]))
    assert [layout.id for layout in layouts] == ["1", "2"]
    assert again.reason == "its id appears 2 times: give each image its own"
    layouts, both = read(write(tmp_path, images=[image(1), image(2), image("1")]))
    assert [layout.id for layout in layouts] == ["2"] and len(both) == 2


def test_an_annotation_that_is_there_twice_rejects_its_image_and_reused_numbers_do_not(tmp_path):
    twice = [box(11, 1), box(11, 1), box(12, 2), box(12, 2, bbox=[0, 0, 20, 20])]
    layouts, (rejected,) = read(write(tmp_path, annotations=twice))
    assert [len(layout.boxes) for layout in layouts] == [2]
    assert rejected.reason == "annotation 11 appears twice: leave one of them out"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"annotations": None}, "annotations of COCO file .* is None: it must be a list"),
        ({"images": {"1": {}}}, "images of COCO file .* it must be a list"),
        ({"categories": 5}, "categories of COCO file .* is 5: it must be a list"),
    ],
)
def test_a_file_whose_parts_are_no_lists_is_one_sentence(tmp_path, changes, reason):
    instances, captions = write(tmp_path)
    instances.write_text(json.dumps(json.loads(instances.read_text()) | changes))
    with pytest.raises(ValueError, match=reason):
        read((instances, captions))


def test_training_needs_the_name_of_a_file_and_layouts_do_not(tmp_path):
    """LVIS's images have a coco_url instead of file_name."""
    paths = write(tmp_path, images=[without(image(1), "file_name"), image(2, file_name=None)])
    layouts, rejected = read(paths)
    assert [layout.id for layout in layouts] == ["1", "2"] and not rejected
    entries = list(read_coco(*paths, tmp_path))
    assert [entry.reason for entry in entries if isinstance(entry, Rejected)] == [
        "its file_name is None: it must be the name of a file"
    ] * 2


def test_training_gets_the_phrases_boxes_and_captions_of_the_files(tmp_path):
    categories = [{"id": 1, "name": "elephant"}, {"id": 2, "name": "hair_drier"}]
    annotations = [
        box(11, 1, bbox=[10, 20, 95, 40]),  # extends beyond the image
        box(12, 1, category_id=2),
        box(13, 1, iscrowd=1, bbox=None),
    ]
    captions = [{"image_id": 1, "caption": text} for text in (" one\n", "two")]
    paths = write(tmp_path, [image(1)], annotations, categories, captions)
    (entry,) = read_coco(*paths, tmp_path)
    assert isinstance(entry, Annotated)
    assert entry.path == tmp_path / "1.jpg" and entry.captions == ("one", "two")
    assert tuple(entry.phrases) == ("a elephant", "a hair drier")  # LayoutGPT's rule
    assert tuple(entry.boxes) == ((0.1, 0.2, 1.0, 0.6), (0.1, 0.1, 0.6, 0.6))


def test_a_byte_order_mark_is_read_over(tmp_path):
    paths = write(tmp_path)
    for path in paths:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read(paths)[0]) == 2
