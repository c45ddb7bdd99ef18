"""transformers' detectors as scorers, and what is easy to get wrong about them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorers import detector
from reground_jax.evaluation.scorers.detector import detector_scorer
from reground_jax.layout import Layout
from tests import detectors

NAMES = ["N/A", "tvmonitor", "N/A", "cat", "Diningtable"]  # ids have holes, as COCO's do
CATEGORIES = ["cat", "dining table", "tv"]
KINDS = {"rt_detr": detectors.rt_detr, "yolos": detectors.yolos}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp(request.param) / "model", NAMES)


def pictures(count: int, height: int = 40, width: int = 80) -> np.ndarray:
    """Smooth ones, so that resizing keeps what is in them."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 5, 5, 3), np.uint8)
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(one).resize(size)) for one in small])


def cases(count: int) -> list[Case]:
    return [Case(Layout("", id=str(i)), {"objects": []}) for i in range(count)]


def expected(folder, image: np.ndarray) -> list[list]:
    """From the logits of one image: [category, score, box in fractions], best first."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(**processor(images=[Image.fromarray(image)], return_tensors="pt"))
    logits, boxes = out.logits[0], out.pred_boxes[0].numpy()
    if model.config.model_type == "yolos":
        scores, labels = (part.numpy() for part in logits.softmax(-1)[:, :-1].max(-1))
        queries = np.arange(len(scores))
    else:
        flat, order = logits.sigmoid().flatten().sort(descending=True)
        scores, order = flat[: len(boxes)].numpy(), order[: len(boxes)].numpy()
        queries, labels = order // len(NAMES), order % len(NAMES)
    names = {1: "tv", 3: "cat", 4: "dining table"}
    found = []
    for score, label, query in zip(scores, labels, queries, strict=True):
        x, y, w, h = boxes[query]
        box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, 1)
        if int(label) in names and score >= 0.01:
            found.append([names[int(label)], float(score), box.tolist()])
    return sorted(found, key=lambda row: -row[1])


def test_detections_are_the_networks_by_name_in_fractions_of_the_image(folder):
    images = pictures(3)  # twice as wide as high: (height, width) must not be exchanged
    records = detector_scorer(str(folder), CATEGORIES).score(images, cases(3))
    total = 0
    for image, record, case in zip(images, records, cases(3), strict=True):
        wanted = expected(folder, image)
        found = record["detections"]
        assert record["id"] == case.layout.id and len(found) == len(wanted)
        np.testing.assert_allclose(
            [score for _, score, _ in found], [score for _, score, _ in wanted], atol=1e-5
        )
        for name, score, box in found:
            near = [w for w in wanted if w[0] == name and abs(w[1] - score) < 1e-5]
            assert min(np.abs(np.subtract(box, w[2])).max() for w in near) < 1e-4
        total += len(found)
    assert total > 10


def test_an_image_scores_the_same_whatever_is_scored_with_it(folder):
    scorer = detector_scorer(str(folder), CATEGORIES)
    images, told = pictures(detector.BATCH + 3), cases(detector.BATCH + 3)
    together = scorer.score(images, told)
    assert together[:2] == scorer.score(images[:2], told[:2])
    assert together[-1:] == scorer.score(images[-1:], told[-1:])
    backwards = scorer.score(images[::-1], told[::-1])[::-1]
    for one, other in zip(together, backwards, strict=True):
        mine, theirs = ([row[1] for row in r["detections"]] for r in (one, other))
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_category_that_the_detector_lacks_is_named_before_anything_is_loaded(folder):
    with pytest.raises(ValueError, match="does not know zebra, which the data set asks for"):
        detector_scorer(str(folder), [*CATEGORIES, "zebra"])


def test_the_version_is_that_of_the_files(folder, tmp_path):
    before = detector_scorer(str(folder), CATEGORIES).version
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_text("more")
    assert detector_scorer(str(tmp_path), CATEGORIES).version == before
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert detector_scorer(str(tmp_path), CATEGORIES).version != before


def test_nothing_needs_torchvision_and_torch_is_imported_late(folder):
    program = f"""
import sys
from reground_jax.evaluation.scorers.detector import detector_scorer
scorer = detector_scorer({str(folder)!r}, {CATEGORIES!r})
assert not {{"torch", "transformers"}} & set(sys.modules)
import numpy as np
from reground_jax.evaluation.cases import Case
from reground_jax.layout import Layout
sys.modules["torchvision"] = None
scorer.score(np.zeros((1, 32, 32, 3), np.uint8), [Case(Layout("", id="1"), {{"objects": []}})])
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_torch_a_sentence_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(detector.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs torch: pip install 'reground-jax\[evaluate\]'"):
        detector_scorer(str(folder), CATEGORIES)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "rf_detr", "id2label": {"0": "cat"}}, "RF-DETR's images with torchvision"),
        ({"model_type": "clip"}, "has no id2label: is it an object detector?"),
        ([], "has no id2label"),
        (None, "has no config.json: give a folder that transformers wrote"),
    ],
)
def test_folders_that_are_no_usable_detector_are_refused(tmp_path, config, reason):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=reason):
        detector_scorer(str(tmp_path), ["cat"])


def test_missing_and_broken_weights_are_errors(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = detectors.yolos(tmp_path / "model", NAMES)
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({n: w for n, w in weights.items() if "class_labels" not in n}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of its detector: .*class_labels"):
        detector_scorer(str(folder), CATEGORIES).score(pictures(1), cases(1))
    save_file({n: w * float("nan") for n, w in weights.items()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="outputs of .* are not finite"):
        detector_scorer(str(folder), CATEGORIES).score(pictures(1), cases(1))
