"""FID's InceptionV3 against torch-fidelity's module, converted by the real loader.

Its outputs are recorded; `tests/inception_reference.py` says how. Where that package is installed,
the module itself runs, too.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from reground_jax.convert.scoring import load_inception
from reground_jax.evaluation.scorers.batches import in_batches
from reground_jax.networks import inception
from reground_jax.networks.resample import resize_bilinear_tf1
from tests import inception_reference as reference
from tests.fixtures import fixtures
from tests.reference import relative_error

TOLERANCE = 1e-5  # of the largest value, in float32 on both sides
RECORDED = fixtures() / reference.FILE.name
live = pytest.mark.skipif(not reference.AVAILABLE, reason="torch_fidelity is not installed")


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    path = RECORDED if RECORDED.exists() else reference.FILE
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def weights(recorded) -> dict[str, torch.Tensor]:
    return reference.state(json.loads(str(recorded["shapes"])))


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


def ours(file: Path, images: np.ndarray) -> np.ndarray:
    over = in_batches(load_inception(file), lambda net, x: net(x), inputs=1, batch_size=2)
    return over((image,) for image in images)


def test_features_equal_torch_fidelitys(file, recorded):
    assert recorded["features"].shape == (2, inception.FEATURES)
    assert relative_error(ours(file, reference.images()), recorded["features"]) < TOLERANCE


def padding_counts(monkeypatch):
    monkeypatch.setattr(inception, "_neighbors", lambda length: np.full(length, 3, np.float32))


def the_last_pool_averages(monkeypatch):
    *first, (name, branches, _) = inception.BLOCKS
    monkeypatch.setattr(inception, "BLOCKS", (*first, (name, branches, inception.average)))


def the_block_before_it_takes_the_largest(monkeypatch):
    blocks = [
        (name, branches, inception.largest if name == "Mixed_7b" else pool)
        for name, branches, pool in inception.BLOCKS
    ]
    monkeypatch.setattr(inception, "BLOCKS", tuple(blocks))


def half_pixels(monkeypatch):
    def resized(x, size):
        position = (np.arange(size[0]) + 0.5) * x.shape[1] / size[0] - 0.5
        low = np.floor(position).astype(int).clip(0, x.shape[1] - 2)
        share = jnp.asarray(position - low, jnp.float32)
        x = x[:, low] + (x[:, low + 1] - x[:, low]) * share[None, :, None, None]
        return x[:, :, low] + (x[:, :, low + 1] - x[:, :, low]) * share[None, None, :, None]

    monkeypatch.setattr(inception, "resize_bilinear_tf1", resized)


def torchs_epsilon(monkeypatch):
    monkeypatch.setattr(inception, "EPS", 1e-5)


def another_size(monkeypatch):
    monkeypatch.setattr(inception, "SIDE", 298)


@pytest.mark.parametrize(
    "mistake",
    [
        padding_counts,
        the_last_pool_averages,
        the_block_before_it_takes_the_largest,
        half_pixels,
        torchs_epsilon,
        another_size,
    ],
)
def test_a_mistake_would_be_noticed(mistake, file, recorded, monkeypatch):
    mistake(monkeypatch)
    wrong = relative_error(ours(file, reference.images()), recorded["features"])
    assert wrong > 10 * TOLERANCE, wrong


@live
@pytest.mark.parametrize("size", [(300, 211), (64, 64)])
def test_features_of_any_size_equal_those_of_the_module(size, file, weights):
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    expected = reference.features(reference.network(weights), images)
    assert relative_error(ours(file, images), expected) < TOLERANCE


@live
@pytest.mark.parametrize("size", [(512, 512), (300, 211), (64, 64), (299, 299)])
def test_the_resize_is_tensorflows(size):
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.float32)
    resize = reference.torch_fidelity("interpolate_compat_tensorflow")
    expected = resize.interpolate_bilinear_2d_like_tensorflow1x(
        torch.from_numpy(images).permute(0, 3, 1, 2), size=(299, 299), align_corners=False
    )
    found = resize_bilinear_tf1(jnp.asarray(images), (299, 299))
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-4)


def test_the_resize_keeps_corners_where_they_are_and_does_not_average():
    row = jnp.asarray([0.0, 4.0, 8.0, 2.0])[None, None, :, None]
    assert resize_bilinear_tf1(row, (1, 8))[0, 0, :, 0].tolist() == [0, 2, 4, 6, 8, 5, 2, 2]
    assert resize_bilinear_tf1(row, (1, 2))[0, 0, :, 0].tolist() == [0, 8]


# ---- files


def test_every_form_of_the_file_gives_the_same_network(file, weights, tmp_path):
    old, safe = tmp_path / "old.pth", tmp_path / "folder" / "weights.safetensors"
    safe.parent.mkdir()
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    no_counts = {name: w for name, w in weights.items() if "num_batches" not in name}
    safetensors.torch.save_file(no_counts, safe)
    first = load_inception(file)
    assert first.revision is None and list(first.files) == ["weights.pth"]
    for path in (old, safe.parent):
        other = load_inception(path)
        assert other.files.keys() != first.files.keys()
        for block in ("Conv2d_1a_3x3", "Mixed_7c"):
            np.testing.assert_equal(other.read()[block], first.read()[block])


def test_the_network_has_as_many_parameters_as_published(file):
    count = sum(leaf.size for leaf in jax.tree.leaves(load_inception(file).read()))
    statistics, last = 2 * 17216, 2048 * 1008 + 1008  # of all batch norms; the layer of classes
    assert count - statistics + last == 23_850_960


def test_other_files_are_refused_in_one_sentence(file, weights, tmp_path):
    def refusal(changes: dict, *, without: str = "-") -> str:
        kept = {name: w for name, w in (weights | changes).items() if without not in name}
        torch.save(kept, tmp_path / "x.pth")
        with pytest.raises(ValueError) as caught:
            load_inception(tmp_path / "x.pth")
        return str(caught.value)

    for found in (
        refusal({"fc.weight": torch.zeros(1000, 2048)}),  # torchvision's own Inception
        refusal({}, without="fc."),
    ):
        assert "is not the Inception of FID" in found and "\n" not in found
        assert "https://github.com/mseitzer/pytorch-fid/releases" in found
    assert "- inception: Mixed_7c.branch_pool.bn.bias" in refusal({}, without="_pool.bn.bias")
    assert "+ inception: AuxLogits.conv0.bn.bias matches no" in refusal(
        {"AuxLogits.conv0.bn.bias": torch.zeros(1)}
    )
    nan = weights["Mixed_5b.branch1x1.bn.bias"] * float("nan")
    assert "Mixed_5b.branch1x1.bn.bias has NaN" in refusal({"Mixed_5b.branch1x1.bn.bias": nan})
    with pytest.raises(ValueError, match=r"Inception nowhere\.pth does not exist; pass the file"):
        load_inception("nowhere.pth")
