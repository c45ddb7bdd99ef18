"""Maps of photographs: what the libraries see, stored as GLIGEN was trained on it; and refusals.

The models are tiny and random, and lie in local folders.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from reground_jax import maps
from reground_jax.cli import main
from reground_jax.kinds import MAP_KINDS
from reground_jax.maps import make_map, predicts_distance
from reground_jax.pictures import Picture
from reground_jax.pictures.pixels import map_pixels
from tests.command import one_error
from tests.reference import write_tokenizer

# Patches of 12 pixels, so that there are edges between them.
PHOTO = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8).repeat(12, 0).repeat(12, 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of tiny estimators by name: relative, metric, ade, cityscapes."""
    import torch
    import transformers as hf

    folder = tmp_path_factory.mktemp("estimators")
    torch.manual_seed(0)
    backbone = hf.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        reshape_hidden_states=False, **{"out_features": ["stage1", "stage2"]},
    )  # fmt: skip
    for kind in ("relative", "metric"):
        config = hf.DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=16,
            reassemble_factors=[2, 1], neck_hidden_sizes=[8, 8], fusion_hidden_size=8,
            head_hidden_size=8, depth_estimation_type=kind, max_depth=20, initializer_range=0.2,
        )  # fmt: skip
        hf.DepthAnythingForDepthEstimation(config).save_pretrained(folder / kind)
        size = {"height": 28, "width": 28}
        hf.DPTImageProcessor(size=size, ensure_multiple_of=14).save_pretrained(folder / kind)
    for name, labels in (("ade", 150), ("cityscapes", 19)):
        config = hf.SegformerConfig(
            **{"num_labels": labels}, depths=[1] * 4, hidden_sizes=[8] * 4, decoder_hidden_size=8,
            num_attention_heads=[1] * 4, sr_ratios=[1] * 4,
        )  # fmt: skip
        hf.SegformerForSemanticSegmentation(config).save_pretrained(folder / name)
        size = {"height": 64, "width": 64}
        hf.SegformerImageProcessor(size=size).save_pretrained(folder / name)
    return folder


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def values(*arguments, **options) -> np.ndarray:
    return np.asarray(make_map(*arguments, **options))


# ---- canny


def test_canny_is_opencvs():
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    gray = cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY)
    found = values(PHOTO, "canny")
    assert set(np.unique(found)) == {0, 255}  # there are edges, and they are white
    np.testing.assert_array_equal(found, cv2.Canny(gray, 100, 200))
    np.testing.assert_array_equal(
        values(PHOTO, "canny", low=10, high=900), cv2.Canny(gray, 10, 900)
    )


def test_a_photograph_is_upright_and_opaque_first(tmp_path):
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(PHOTO).save(tmp_path / "turned.png", exif=exif)
    clear = np.concatenate([PHOTO, np.zeros((*PHOTO.shape[:2], 1), np.uint8)], 2)
    turned = np.rot90(PHOTO, -1).copy()
    np.testing.assert_array_equal(values(tmp_path / "turned.png", "canny"), values(turned, "canny"))
    assert not values(clear, "canny").any()  # all white


def test_the_command_makes_a_map_that_generate_reads(photo, tmp_path, capsys, monkeypatch):
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    out = tmp_path / "maps" / "edges.png"
    assert main(["map", "canny", str(photo), "--out", str(out), "--low", "50"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as image:
        np.testing.assert_array_equal(image, values(PHOTO, "canny", low=50))
    assert map_pixels(Picture.of(out), "canny").shape == (512, 512, 3)
    monkeypatch.chdir(tmp_path)
    assert main(["map", "canny", "photo.png"]) == 0
    assert capsys.readouterr().out == "photo.canny.png\n"


# ---- depth


def predicted(folder: Path) -> dict:
    from transformers import pipeline

    return pipeline("depth-estimation", model=str(folder))(Image.fromarray(PHOTO))


def test_relative_depth_is_stored_as_transformers_draws_it(models):
    found = values(PHOTO, "depth", estimator=models / "relative")
    np.testing.assert_array_equal(found, predicted(models / "relative")["depth"])
    assert (found.shape, found.min(), found.max()) == (PHOTO.shape[:2], 0, 255)


def test_distances_are_inverted_unless_told_otherwise(models):
    folder = models / "metric"
    said = f"{folder} predicts distances: the map is their inverse, so that near is bright"
    with pytest.warns(UserWarning, match=said):
        found = values(PHOTO, "depth", estimator=folder)
    distance = predicted(folder)["predicted_depth"].numpy()
    near = distance <= np.percentile(distance, 1)
    assert (found[near] == 255).all() and found[distance == distance.max()] == 0
    assert (np.diff(found.ravel()[np.argsort(distance, None)].astype(int)) <= 0).all()
    np.testing.assert_array_equal(values(PHOTO, "depth", estimator=folder, invert=True), found)
    as_it_is = values(PHOTO, "depth", estimator=folder, invert=False)
    np.testing.assert_array_equal(as_it_is, predicted(folder)["depth"])
    assert values(PHOTO, "depth", estimator=models / "relative", invert=True).max() == 255


def test_models_of_distances_are_known_by_their_configuration():
    import transformers as hf

    dinov2 = hf.Dinov2Config(**{"out_features": ["stage1", "stage2", "stage3", "stage4"]})
    distances = (
        hf.ZoeDepthConfig(),
        hf.GLPNConfig(),
        hf.DepthProConfig(),
        hf.DepthAnythingConfig(depth_estimation_type="metric"),
        hf.DPTConfig(backbone_config=dinov2),  # NYU, KITTI
    )
    inverse = (hf.DPTConfig(), hf.DPTConfig(is_hybrid=True), hf.DepthAnythingConfig())
    assert all(map(predicts_distance, distances))
    assert not any(map(predicts_distance, inverse))


# ---- sem


def test_labels_are_those_of_the_model_plus_one(models, tmp_path):
    import torch
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

    made = make_map(PHOTO, "sem", estimator=models / "ade")
    model = SegformerForSemanticSegmentation.from_pretrained(models / "ade")
    processor = SegformerImageProcessor.from_pretrained(models / "ade")
    with torch.no_grad():
        output = model(**processor(Image.fromarray(PHOTO), return_tensors="pt"))
    sizes = [PHOTO.shape[:2]]
    labels = processor.post_process_semantic_segmentation(output, target_sizes=sizes)[0]
    np.testing.assert_array_equal(made, labels.numpy() + 1)
    made.save(tmp_path / "labels.png")
    side = min(made.size)
    read = map_pixels(Picture.of(tmp_path / "labels.png"), "sem", side, side)
    left = (made.width - side) // 2
    np.testing.assert_array_equal(read, np.asarray(made)[:, left : left + side])


# ---- normal and hed


def write_marigold(folder: Path, prediction_type: str) -> Path:
    import diffusers as df
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = write_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    levels = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    unet = df.UNet2DConditionModel(
        **levels, sample_size=8, in_channels=8, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = df.AutoencoderKL(
        **levels, down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip
    df.MarigoldNormalsPipeline(
        unet, vae, df.DDIMScheduler(), CLIPTextModel(text), tokenizer,
        prediction_type=prediction_type, default_denoising_steps=1,
        default_processing_resolution=32,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_normals_are_marigolds(tmp_path):
    import torch

    torch.manual_seed(0)
    folder = write_marigold(tmp_path / "normals", "normals")
    found = values(PHOTO, "normal", estimator=folder)
    assert found.shape == PHOTO.shape
    np.testing.assert_array_equal(values(PHOTO, "normal", estimator=folder), found)
    length = np.linalg.norm(found / 127.5 - 1, axis=2)
    assert np.median(abs(length - 1)) < 0.02  # unit vectors
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"prediction_type": "depth"}))
    with pytest.raises(ValueError, match="predicts depth: give one of Marigold's models of norm"):
        make_map(PHOTO, "normal", estimator=folder)


def test_hed_is_controlnet_auxs_at_the_size_of_the_photograph(tmp_path, monkeypatch):
    """Its detector is replaced: it needs torchvision, and returns sides that 64 divides."""
    asked = []

    def detect(image: Image.Image, output_type: str) -> Image.Image:
        assert output_type == "pil"
        return image.resize((704, 512))

    def from_pretrained(source: str):
        asked.append(source)
        return detect

    detector = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "controlnet_aux", SimpleNamespace(HEDdetector=detector))
    assert values(PHOTO, "hed").shape == PHOTO.shape[:2]
    make_map(PHOTO, "hed", estimator=tmp_path)
    assert asked == ["lllyasviel/Annotators", str(tmp_path)]


# ---- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cany"], "kind of map 'cany' is unknown: did you mean 'canny'?"),
        (["sem", "--low", "3"], "low is not an option of kind sem, which has none: leave it out"),
        (["depth", "--high", "3"], "high is not an option of kind depth, which has invert"),
        (["canny", "--no-invert"], "invert is not an option of kind canny, which has low and high"),
        (["canny", "--estimator", "a/b"], "kind canny needs no estimator: leave 'a/b' out"),
        (["canny", "--low", "300"], "low is 300.0, above high, 200: exchange them"),
        (["canny", "--high", "-1"], "high is -1.0: give a number of at least 0"),
        (["canny", "--low", "nan"], "low is nan: give a number of at least 0"),
        (["canny", "--out", "map.jpg"], "only PNG files keep the values of a map exactly"),
        (["depth", "--estimator", "no such folder"], "is neither a folder on this machine nor"),
        (["depth", "--estimator", ""], "estimator '' is neither a folder on this machine nor"),
        (["depth", "--estimator", "{}"], "cannot load {} for a map of kind depth (Unrecognized"),
        (["depth", "--estimator", "{}/ade"], "makes no depth map: give a model such as Intel/dpt"),
        (["sem", "--estimator", "{}/relative"], "DepthEstimation, which makes no sem map"),
        (["sem", "--estimator", "{}/cityscapes"], "has 19 labels, but GLIGEN's are ADE20K's 150"),
        (["normal", "--estimator", "{}"], "cannot load {} for a map of kind normal ("),
    ],
)
def test_bad_requests_are_one_sentence(words, message, models, photo, capsys):
    kind, *more = (word.format(models) for word in words)
    printed = one_error(capsys, ["map", kind, str(photo), "--out", f"{photo}.map.png", *more])
    assert message.format(models) in printed
    assert not Path(f"{photo}.map.png").exists()


def test_files_are_neither_misread_nor_overwritten(photo, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    argv = ["map", "canny", str(tmp_path / "text.png"), "-o", str(tmp_path / "out.png")]
    assert "cannot read picture" in one_error(capsys, argv)
    argv = ["map", "canny", str(tmp_path / "none.png"), "-o", str(tmp_path / "out.png")]
    assert "there is no such file" in one_error(capsys, argv)
    argv = ["map", "canny", str(photo), "-o", str(photo)]
    assert "the photograph itself: choose another name" in one_error(capsys, argv)


@pytest.mark.parametrize(
    ("kind", "library", "install"),
    [
        ("canny", "cv2", "pip install 'reground-jax[maps]'"),
        ("depth", "transformers", "pip install 'reground-jax[maps]'"),
        ("sem", "torch", "pip install 'reground-jax[maps]'"),
        ("normal", "diffusers", "pip install 'reground-jax[maps]'"),
        ("hed", "controlnet_aux", "or take soft edges, white on black, that another program made"),
    ],
)
def test_a_missing_library_is_named_with_the_way_to_install_it(kind, library, install, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=f"a map of kind {kind} needs {library}: ") as error:
        make_map(PHOTO, kind)
    assert install in str(error.value)


def test_a_depth_without_contrast_is_refused(models, monkeypatch):
    import torch
    import transformers

    def pipeline(*_, **__):
        return lambda image: {"predicted_depth": torch.zeros(image.size[::-1])}

    monkeypatch.setattr(transformers, "pipeline", pipeline)
    with pytest.raises(ValueError, match="the same depth everywhere"):
        make_map(PHOTO, "depth", estimator=models / "relative")
    with pytest.raises(ValueError, match="no distance above 0: use --no-invert"):
        make_map(PHOTO, "depth", estimator=models / "relative", invert=True)
    with pytest.raises(ValueError, match="invert is 'yes': give True, False or None"):
        make_map(PHOTO, "depth", estimator=models / "relative", invert="yes")


def test_every_kind_but_canny_has_a_default_estimator():
    assert {*maps.DEFAULTS, "canny"} == set(MAP_KINDS)
