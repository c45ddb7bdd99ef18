"""COCO's and NSR-1K's files as evaluation cases, and cases exported in COCO's form."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reground_jax.emoji.cases import heldout_cases
from reground_jax.evaluation.cases import with_half_the_boxes
from reground_jax.evaluation.data_sets.coco_names import COCO_IDS, coco_name
from reground_jax.evaluation.data_sets.export import export_coco
from reground_jax.evaluation.data_sets.files import coco_set, nsr1k_set
from reground_jax.evaluation.data_sets.photographs import find_photographs, read_photograph
from reground_jax.evaluation.scorers.results import results_scorer
from reground_jax.readers.nsr1k import category_of, phrase, read_nsr1k_tasks
from tests.data_sets import CAT, DOG, NAMES, write_coco, write_nsr1k

# ---- COCO


def test_a_case_has_the_boxes_that_are_asked_for_and_names_what_else_is_there(tmp_path):
    found = coco_set(*write_coco(tmp_path), name="coco2017")
    case = next(c for c in found.cases if c.layout.id == "3")
    assert case.layout.prompt == "a dog and a cat, 3"
    assert case.layout.phrases == ("a dog", "a cat")
    assert case.layout.boxes == ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1))
    facts = case.facts
    assert [(t["category"], t["boxed"], t["attribute"]) for t in facts["objects"]] == [
        ("dog", True, None),
        ("cat", True, None),
        ("car", False, None),  # too small for a box
    ]
    assert facts["ignored"] == ["person"]  # a crowd; one of the cars is an object
    assert facts["least_area"] == 0.01 and facts["file"] == "3.jpg" and facts["image"] == "3"
    assert found.categories == ["car", "cat", "dog"]
    assert found.facts["layouts"] == 6 and found.facts["rejected"] == 0


def test_smaller_sets_are_the_beginning_of_larger_ones_in_an_order_of_their_own(tmp_path):
    files = write_coco(tmp_path, 40)
    whole = [str(c.layout.id) for c in coco_set(*files, name="coco2017").cases]
    assert [c.layout.id for c in coco_set(*files, name="coco2017", limit=9).cases] == whole[:9]
    assert sorted(whole, key=int) != whole
    assert [c.layout.id for c in coco_set(*files, name="coco2014").cases] != whole


def test_phrases_can_be_bare_names(tmp_path):
    named = coco_set(*write_coco(tmp_path), name="coco2017", phrases="name").cases[0]
    assert named.layout.phrases == ("dog", "cat") and named.counts["dog"] == 1


def test_files_of_different_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="captions of 2 of the 6 images .* the same split"):
        coco_set(*write_coco(tmp_path, captions=2), name="coco2017")


def test_images_without_a_caption_are_counted(tmp_path):
    found = coco_set(*write_coco(tmp_path, captions=5), name="coco2017")
    assert found.facts["rejected"] == 1 and len(found.cases) == 5
    assert "no caption" in found.facts["rejected_examples"][0]


def test_a_set_without_boxes_is_refused(tmp_path):
    instances, captions = write_coco(tmp_path)
    content = json.loads(instances.read_text()) | {"annotations": []}
    instances.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="instances_val2017.json has no image with a box"):
        coco_set(instances, captions, name="coco2017")
    with pytest.raises(ValueError, match="COCO file .* lacks images"):
        coco_set(captions, tmp_path / "captions_val2017.json", name="coco2017")


# ---- COCO-Drop


def test_half_of_the_categories_can_be_rounded_up_or_drawn_one_by_one(tmp_path):
    cases = heldout_cases(300) + coco_set(*write_coco(tmp_path), name="coco2017").cases
    names = [{t["category"] for t in c.facts["objects"] if t["boxed"]} for c in cases]
    before = {c.layout.id: found for c, found in zip(cases, names, strict=True)}
    kept = Counter()
    for how in ("floor", "ceil", "each"):
        dropped = with_half_the_boxes(cases, how)
        assert len(dropped) == sum(len(found) > 1 for found in names)
        for case in dropped:
            left = {t["category"] for t in case.facts["objects"] if t["boxed"]}
            count = len(before[case.layout.id])
            assert how == "each" or len(left) == (count + (how == "floor")) // 2
            kept[how] += len(left)
            assert len(case.layout.boxes) == sum(t["boxed"] for t in case.facts["objects"])
    total = sum(len(found) for found in names if len(found) > 1)
    assert kept["ceil"] < kept["floor"] and abs(kept["each"] / total - 0.5) < 0.06
    assert with_half_the_boxes(cases) == with_half_the_boxes(cases, "floor")


# ---- NSR-1K


def test_counting_prompts_have_gpt4s_layouts_and_their_counts(tmp_path):
    files = write_nsr1k(tmp_path)
    found = nsr1k_set(files["gpt4.counting"], files["counting.val"], name="nsr1k-counting")
    cases = {c.layout.id: c for c in found.cases}
    assert set(cases) == {"7-0", "7-1", "8-0"}
    assert cases["7-0"].facts["told_counts"] == [["dog", 2], ["cat", 1]]
    assert not cases["7-0"].facts["comparison"] and cases["8-0"].facts["comparison"]
    assert cases["7-0"].facts["image"] == "70"
    # Names that no detector has stay in the layout.
    assert cases["7-1"].facts["outside"] == ["nightstand"]
    assert "a nightstand" in cases["7-1"].layout.phrases
    assert found.facts["outside"] == 1 and found.facts["objects"] == 9
    assert found.categories == ["car", "cat", "dog"]


def test_spatial_prompts_have_their_relation(tmp_path):
    files = write_nsr1k(tmp_path)
    for layouts, name in (("gpt4.spatial", "9-0"), ("spatial.val", "9")):
        found = nsr1k_set(files[layouts], files["spatial.val"], name="nsr1k-spatial")
        assert [c.layout.id for c in found.cases] == [name]
        assert found.cases[0].facts["relation"] == ["potted plant", "left", "dog"]
        assert found.cases[0].layout.phrases == ("a potted plant", "a dog")
        assert found.categories == ["dog", "potted plant"]


def test_prompts_and_layouts_of_other_files_are_refused(tmp_path):
    files = write_nsr1k(tmp_path)
    with pytest.raises(ValueError, match="spatial.val.json has no prompt for layout 7-0"):
        nsr1k_set(files["gpt4.counting"], files["spatial.val"], name="x")
    changed = files["counting.val"].read_text().replace("two dogs", "three dogs")
    files["counting.val"].write_text(changed)
    with pytest.raises(ValueError, match="the prompt of layout 7-0 is .* files that belong"):
        nsr1k_set(files["gpt4.counting"], files["counting.val"], name="x")
    files["gpt4.spatial"].write_text("[]")
    with pytest.raises(ValueError, match="gpt4.spatial.json has no valid layout"):
        nsr1k_set(files["gpt4.spatial"], files["spatial.val"], name="x")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"relation": "behind"}, "its relation is 'behind': known are left, right"),
        ({"obj1": "dog"}, "expected id, prompt, and num_object"),
        ({"id": None}, "its id is None"),
        ({"prompt": 3}, "expected id, prompt"),
    ],
)
def test_bad_spatial_prompts_are_named(tmp_path, change, reason):
    path = write_nsr1k(tmp_path)["spatial.val"]
    path.write_text(json.dumps([json.loads(path.read_text())[0] | change]))
    with pytest.raises(ValueError, match=f"entry 1: .*{reason}"):
        read_nsr1k_tasks(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_object": [["dog", 2.5], ["cat", 1]]}, r"\['dog', 2.5\] is not \[category, whole"),
        ({"num_object": [["dog", 2]], "sub-type": "comparison"}, "expected two counts"),
    ],
)
def test_bad_counting_prompts_are_named(tmp_path, change, reason):
    path = write_nsr1k(tmp_path)["counting.val"]
    path.write_text(json.dumps([json.loads(path.read_text())[0] | change]))
    with pytest.raises(ValueError, match=f"entry 1: .*{reason}"):
        read_nsr1k_tasks(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a list"):
        read_nsr1k_tasks(path)


def test_spatial_files_in_words_are_read():
    """The relation of other files is written out: "to the left of"."""
    path = Path(__file__).parent / "data/cases/nsr1k-spatial/spatial.json"
    (task,) = read_nsr1k_tasks(path).values()
    assert task.relation == ("toilet", "left", "dog") and task.image == "16164"


def test_categories_are_the_inverse_of_phrases_and_have_cocos_names():
    assert all(category_of(phrase(name)) == name for name in COCO_IDS)
    assert len(COCO_IDS) == 80 == len(set(COCO_IDS.values())) and max(COCO_IDS.values()) == 90
    assert [coco_name(n) for n in ("Diningtable", "TVmonitor", "fire-hydrant", "zebra")] == [
        "dining table", "tv", "fire hydrant", "zebra",
    ]  # fmt: skip


# ---- photographs


def photographs(cases, folder: Path, size: int = 512) -> list[np.ndarray]:
    pairs = zip(find_photographs(cases, folder), cases, strict=True)
    return [read_photograph(path, case, size) for path, case in pairs]


def test_photographs_are_center_squares_for_coco_and_whole_for_nsr1k(tmp_path):
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, :50], image[:, 50:150], image[:, 150:] = 10, 120, 250
    (tmp_path / "val2017").mkdir()
    for name in ("000000000003", "COCO_val2014_000000000070"):
        Image.fromarray(image).save(tmp_path / "val2017" / f"{name}.jpg", quality=100)
    (tmp_path / "val2017/3.jpg").write_bytes((tmp_path / "val2017/000000000003.jpg").read_bytes())
    coco = [c for c in coco_set(*write_coco(tmp_path), name="c").cases if c.layout.id == "3"]
    (square,) = photographs(coco, tmp_path, 64)
    assert square.shape == (64, 64, 3) and np.abs(square[:, 2:-2].astype(int) - 120).max() < 4
    files = write_nsr1k(tmp_path)
    nsr1k = nsr1k_set(files["gpt4.counting"], files["counting.val"], name="n").cases
    (first, second) = photographs([c for c in nsr1k if c.facts["image"] == "70"], tmp_path, 64)
    np.testing.assert_array_equal(first, second)
    assert first[:15].max() == 0 and abs(int(first[32, 4, 0]) - 10) < 4
    with pytest.raises(ValueError, match="lacks 1 photograph, .* 000000000080.jpg"):
        photographs(nsr1k, tmp_path)


# ---- export


def test_exported_cases_are_read_back_with_their_ids(tmp_path):
    cases = heldout_cases(12)
    export_coco(tmp_path / "out", cases, size=64)
    files = tmp_path / "out/instances.json", tmp_path / "out/captions.json"
    back = {c.layout.id: c for c in coco_set(*files, name="emoji").cases}
    assert len(back) == sum(bool(c.layout.boxes) for c in cases)
    for case in cases:
        mine = back.get(str(case.layout.id))
        if mine is None:
            continue
        assert mine.layout.prompt == case.layout.prompt
        theirs = sorted(mine.layout.boxes)
        np.testing.assert_allclose(theirs, sorted(case.layout.boxes), atol=1e-12)
        named = {*mine.counts, *mine.facts["ignored"]}
        assert named == {*case.counts} and not mine.unboxed
    with pytest.raises(ValueError, match="out exists: choose a new folder"):
        export_coco(tmp_path / "out", cases)


def test_exported_images_are_png_with_checksums_and_must_be_enough(tmp_path):
    cases = coco_set(*write_coco(tmp_path, 3), name="coco2017").cases
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    export_coco(tmp_path / "out", cases, iter(images))
    entries = json.loads((tmp_path / "out/instances.json").read_text())["images"]
    assert [entry["id"] for entry in entries] == [int(c.layout.id) for c in cases]
    for entry, image in zip(entries, images, strict=True):
        assert (entry["width"], entry["height"]) == (24, 16)
        stored = np.asarray(Image.open(tmp_path / "out/images" / entry["file_name"]))
        np.testing.assert_array_equal(stored, image)
    with pytest.raises(ValueError, match="2 images for 3 cases"):
        export_coco(tmp_path / "more", cases, images[:2])
    assert not (tmp_path / "more").exists()


# ---- detections that another program made


def exported(folder: Path, results: list[dict]) -> tuple[Path, list, np.ndarray]:
    cases = coco_set(*write_coco(folder, 3), name="coco2017").cases
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
    export_coco(folder / "out", cases, images)
    path = folder / "out/results.json"
    path.write_text(json.dumps(results))
    return path, cases, images


def result(case, category=DOG, box=(0, 0, 10, 10), score=0.9) -> dict:
    image = int(case.layout.id)
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def test_results_belong_to_the_image_whatever_its_place_or_condition(tmp_path):
    path, cases, images = exported(tmp_path, [])
    rows = [result(cases[1]), result(cases[1], CAT, (10, 10, 12, 10), 0.5), result(cases[0])]
    path.write_text(json.dumps(rows))
    scorer = results_scorer(path, ["dog", "cat"])
    records = scorer.score(images[[2, 1]], [cases[2], cases[1]])
    assert records[0] == {"id": cases[2].layout.id, "detections": []}
    assert records[1]["detections"] == [
        ["dog", 0.9, [0, 0, 0.5, 0.5]],
        ["cat", 0.5, [0.5, 0.5, 1, 1]],  # clipped
    ]
    with pytest.raises(ValueError, match="is not one of those that .*instances.json lists"):
        scorer.score(images[:1] // 2, cases[:1])
    assert results_scorer(path, ["dog"]).version == scorer.version
    path.write_text(json.dumps(rows[:1]))
    assert results_scorer(path, ["dog"]).version != scorer.version


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_id": 99}, "detection 1: its image_id is 99, which was not exported"),
        ({"category_id": 12}, "detection 1: its category_id is 12, which was not exported"),
        ({"bbox": [0, 0, 1]}, "detection 1: it is .*expected image_id"),
        ({"bbox": [0, 0, "a", 1]}, "bbox and score must be finite numbers"),
        ({"score": None}, "bbox and score must be finite numbers"),
    ],
)
def test_bad_results_are_named(tmp_path, change, reason):
    path, cases, _ = exported(tmp_path, [])
    path.write_text(json.dumps([result(cases[0]) | change]))
    with pytest.raises(ValueError, match=reason):
        results_scorer(path, ["dog"])


def test_results_need_the_exported_images(tmp_path):
    path, _, _ = exported(tmp_path, [])
    with pytest.raises(ValueError, match="does not have unicorn, which the data set asks for"):
        results_scorer(path, ["unicorn", *NAMES.values()])
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a list of detections"):
        results_scorer(path, ["dog"])
    write_coco(tmp_path)[0].rename(path.parent / "instances.json")
    with pytest.raises(ValueError, match="lists no image with its checksum"):
        results_scorer(path, ["dog"])
    (path.parent / "instances.json").unlink()
    with pytest.raises(ValueError, match="cannot read COCO file"):
        results_scorer(path, ["dog"])
