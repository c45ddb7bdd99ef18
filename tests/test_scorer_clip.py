"""CLIP score and PickScore against transformers' processor and model, from images to records."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from reground_jax.convert import scoring
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorer import Scorer
from reground_jax.evaluation.scorers import clip as scorers
from reground_jax.evaluation.scorers.clip import clip_scorer, pick_scorer
from reground_jax.evaluation.statistics import bootstrap_weights, interval, mean
from reground_jax.layout import Layout
from reground_jax.pictures.pixels import clip_pixels
from tests.clip_models import CLIPS, write_clip
from tests.processes import with_devices

CAPTIONS = ["a cat", "two dogs, on grass!", "word " * 80, "", "A photo of a bus and a person."]
CASES = [Case(Layout(text, id=str(i)), {"objects": []}) for i, text in enumerate(CAPTIONS)]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A CLIP; no test changes it."""
    path = tmp_path_factory.mktemp("clips") / "b32"
    write_clip(path, "b32")
    return path


@pytest.fixture(scope="module")
def scorer(folder) -> Scorer:
    return clip_scorer(folder, batch_size=2)


def expected(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and logits by transformers."""
    side = CLIPS[name][1]["image_size"]
    prepare = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    texts = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    pixels = prepare([Image.fromarray(image) for image in IMAGES], return_tensors="pt")
    with torch.no_grad():
        found = CLIPModel.from_pretrained(folder)(**texts, **pixels)
    cosines = (found.text_embeds * found.image_embeds).sum(-1)
    return cosines.numpy(), found.logits_per_image.diagonal().numpy()


@pytest.mark.parametrize("name", CLIPS)
def test_records_equal_transformers(name, tmp_path):
    write_clip(tmp_path / name, name)
    cosines, logits = expected(tmp_path / name, name)
    # Negative ones count as 0, but not for PickScore.
    assert (cosines < 0).any() == (name != "b32") and (cosines > 0).any() == (name != "h14")
    clip = clip_scorer(tmp_path / name, batch_size=4).score(IMAGES, CASES)
    pick = pick_scorer(tmp_path / name, batch_size=4).score(IMAGES, CASES)
    for found, right in ((clip, 100 * cosines.clip(0)), (pick, logits)):
        assert [record["id"] for record in found] == ["0", "1", "2", "3", "4"]
        assert [record["truncated"] for record in found] == [False, False, True, False, False]
        scores = [record["score"] for record in found]
        np.testing.assert_allclose(scores, right, rtol=0, atol=2e-4)
        assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("size", [(512, 512), (512, 768), (224, 224), (64, 64)])
def test_images_are_prepared_to_the_byte(size):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8))
    bare = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    mean, std = (np.array(getattr(bare, name)) for name in ("image_mean", "image_std"))
    found = np.rint((clip_pixels(image) * std + mean) * 255).astype(np.uint8)
    right = np.asarray(bare(image)["pixel_values"][0]).transpose(1, 2, 0)
    np.testing.assert_array_equal(found, right)


def test_how_images_are_batched_changes_nothing(folder, scorer):
    one = scorer.score(IMAGES, CASES)
    for count in (1, 4):
        parts = [scorer.score(IMAGES[s:e], CASES[s:e]) for s, e in ((0, count), (count, 5))]
        assert [r["score"] for part in parts for r in part] == [r["score"] for r in one]
    many = clip_scorer(folder).score(IMAGES, CASES)
    np.testing.assert_allclose(
        [r["score"] for r in many], [r["score"] for r in one], rtol=0, atol=2e-5
    )


DEVICES = """
import sys
import jax
from reground_jax.evaluation.scorers.clip import clip_scorer
from tests.test_scorer_clip import CASES, IMAGES
assert jax.device_count() == 8
for devices in (jax.devices()[:1], jax.devices()[:3], None):
    records = clip_scorer(sys.argv[1], devices=devices, batch_size=1).score(IMAGES, CASES)
    print([record["score"] for record in records])
"""


def test_devices_change_nothing(folder):
    ran = subprocess.run(
        [sys.executable, "-c", DEVICES, str(folder)],
        capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": with_devices(8)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    one, *others = ran.stdout.splitlines()
    assert len(others) == 2
    for other in others:
        np.testing.assert_allclose(json.loads(other), json.loads(one), rtol=0, atol=2e-5)


def test_the_metrics_are_means_with_intervals(folder):
    scorer = clip_scorer(folder, name="clip_b32")
    assert [metric.name for metric in scorer.metrics] == ["clip_b32", "clip_b32_truncated"]
    records = [{"score": 20.0, "truncated": False}, {"score": 30.0, "truncated": True}]
    weights = np.array([[1, 1], [2, 0], [0, 0]], float)
    score, cut = (metric.statistic(records, weights) for metric in scorer.metrics)
    np.testing.assert_allclose(score, [25, 20, np.nan])
    np.testing.assert_allclose(cut, [0.5, 0, np.nan])
    many = [{"score": float(i)} for i in range(100)]
    estimate, low, high = interval(mean("score")(many, bootstrap_weights(100)))
    spread = 1.96 * np.std(range(100)) / 10
    assert estimate == 49.5
    np.testing.assert_allclose([low, high], [49.5 - spread, 49.5 + spread], atol=0.4)


# ---- identity


def test_the_version_is_that_of_the_files(folder, scorer, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert clip_scorer(copy).version == scorer.version
    state = safetensors.torch.load_file(copy / "model.safetensors")
    state["vision_model.post_layernorm.bias"][0] += 1e-6
    safetensors.torch.save_file(state, copy / "model.safetensors")
    changed = clip_scorer(copy)
    assert changed.version != scorer.version
    assert changed.facts["sha256"].keys() == scorer.facts["sha256"].keys()
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    merges = (other / "merges.txt").read_text().splitlines()
    (other / "merges.txt").write_text("\n".join([*merges[:-2], merges[-1], merges[-2]]) + "\n")
    assert len({clip_scorer(other).version, changed.version, scorer.version}) == 3


def test_facts_say_where_the_network_is_from(folder, scorer):
    assert scorer.facts["source"] == str(folder) and scorer.facts["revision"] is None
    assert {"config.json", "model.safetensors", "vocab.json"} < scorer.facts["sha256"].keys()
    json.dumps(scorer.facts)
    assert scorer.about.startswith("## clip\n\nCLIP score, 100 max(cos, 0) of image and caption;")
    assert f"The network is {folder}, in float32." in scorer.about


def test_pickscore_has_the_tokenizer_of_its_clip(folder, tmp_path, monkeypatch):
    bare = tmp_path / "pick"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, bare)
    asked = []
    monkeypatch.setattr(scoring, "resolve_tokenizer", lambda at: asked.append(at) or folder)
    pick_scorer(bare)
    pick_scorer(bare, tokenizer="mine")
    pick_scorer(folder)
    assert asked == [scorers.PICK_TOKENIZER, "mine", folder]
