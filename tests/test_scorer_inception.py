"""Inception's features as records, and FID and KID of them against formulas and plain loops."""

import dataclasses
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorer import Scorer
from reground_jax.evaluation.scorers.inception import inception_scorer, photograph_distances
from reground_jax.evaluation.statistics import Gaussian, frechet_distance, kernel_distance
from reground_jax.layout import Layout
from tests import inception_reference as reference
from tests.reference import relative_error

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with np.load(reference.FILE) as arrays:
        torch.save(reference.state(json.loads(str(arrays["shapes"]))), path)
    return path


def test_records_are_features_in_half_precision(weights):
    scorer = inception_scorer(weights, batch_size=2)
    images = np.concatenate([reference.images(), reference.images()[:1]])
    cases = [Case(Layout("x", id=name), {"objects": []}) for name in "abc"]
    records = scorer.score(images, cases)
    assert [record["id"] for record in records] == ["a", "b", "c"]
    features = np.array([record["features"] for record in records])
    assert features.shape == (3, 2048) and features.dtype == np.float16
    with np.load(reference.FILE) as arrays:
        right = arrays["features"][[0, 1, 0]]
    assert relative_error(features, right) < 1e-3  # of float16
    assert scorer.metrics == () and scorer.distances == ()
    assert list(scorer.facts["sha256"]) == ["weights.pth"]
    json.dumps(scorer.facts)


def test_another_file_is_another_version(weights, tmp_path):
    state = torch.load(weights)
    state["Mixed_7c.branch_pool.bn.bias"][0] += 1e-6
    torch.save(state, tmp_path / weights.name)
    assert inception_scorer(tmp_path / weights.name).version != inception_scorer(weights).version


# ---- distances


def whitened(count: int, width: int) -> np.ndarray:
    """A sample whose mean is 0 and whose covariance is the identity."""
    x = RNG.standard_normal((count, width))
    x -= x.mean(0)
    root = np.linalg.cholesky(np.linalg.inv(np.cov(x, rowvar=False)))
    return x @ root


def turn(width: int) -> np.ndarray:
    return np.linalg.qr(RNG.standard_normal((width, width)))[0]


@pytest.mark.parametrize(("count", "width"), [(300, 40), (900, 200)])
def test_the_frechet_distance_is_its_closed_form(count, width):
    q, scale, shift = turn(width), RNG.uniform(0.2, 3, width), RNG.standard_normal(width)
    a = Gaussian.of(whitened(count, width) @ q)
    b = Gaussian.of((whitened(count, width) * scale + shift) @ q)
    right = np.square(shift).sum() + np.square(scale - 1).sum()
    assert frechet_distance(a, b) == pytest.approx(right, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(right, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_is_a_double_loop(monkeypatch):
    monkeypatch.setattr("reground_jax.evaluation.statistics.ROWS", 7)
    a, b = RNG.standard_normal((20, 6)), RNG.standard_normal((17, 6)) * 2 + 1

    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / 6 + 1) ** 3

    def within(x):
        pairs = itertools.permutations(x, 2)
        return sum(kernel(*pair) for pair in pairs) / (len(x) * (len(x) - 1))

    between = sum(kernel(x, y) for x in a for y in b) / (20 * 17)
    right = within(a) + within(b) - 2 * between
    assert kernel_distance(a, b) == pytest.approx(right, rel=1e-12)
    halves = a.astype(np.float16), b.astype(np.float16)
    assert kernel_distance(*halves) == pytest.approx(right, rel=1e-2)


@pytest.mark.skipif(not reference.AVAILABLE, reason="torch_fidelity is not installed")
def test_the_kernel_distance_is_torch_fidelitys():
    a, b = RNG.standard_normal((30, 64)), RNG.standard_normal((30, 64)) * 1.1
    theirs = reference.torch_fidelity("metric_kid")
    options = dict(kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1)
    kernels = (theirs.kernel_poly(x, y, **options) for x, y in ((a, a), (a, b), (b, b)))
    assert kernel_distance(a, b) == pytest.approx(theirs.mmd2(*kernels), rel=1e-12)


def test_the_kernel_distance_is_unbiased():
    found = [kernel_distance(*RNG.standard_normal((2, 12, 5))) for _ in range(2000)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 2000**0.5


def records(features: np.ndarray, start: int = 0) -> list[dict]:
    return [
        {"id": str(start + i), "features": row.astype(np.float16)} for i, row in enumerate(features)
    ]


PHOTOGRAPHS = RNG.standard_normal((60, 8)).astype(np.float16)
IMAGES = (RNG.standard_normal((60, 8)) * 1.5 + 0.5).astype(np.float16)


@pytest.fixture
def scorer() -> Scorer:
    bare = Scorer("inception", "1", lambda images, cases: [], ())
    return dataclasses.replace(bare, distances=photograph_distances(records(PHOTOGRAPHS)))


def distances(scorer: Scorer, found: list[dict]) -> dict[str, float | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {distance.name: distance.measure(found) for distance in scorer.distances}


def direct(images: np.ndarray, photographs: np.ndarray) -> dict[str, float]:
    gaussians = Gaussian.of(images), Gaussian.of(photographs)
    kernel = 1000 * kernel_distance(images, photographs)
    return {"fid": frechet_distance(*gaussians), "kid": kernel}


def test_images_are_compared_with_the_photographs_of_their_own_layouts(scorer):
    assert distances(scorer, records(IMAGES)) == pytest.approx(direct(IMAGES, PHOTOGRAPHS))
    part = records(IMAGES)[10:40]
    expected = pytest.approx(direct(IMAGES[10:40], PHOTOGRAPHS[10:40]))
    assert distances(scorer, part) == expected
    assert distances(scorer, part[::-1]) == expected
    assert distances(scorer, records(PHOTOGRAPHS))["fid"] == pytest.approx(0, abs=1e-9)


def test_several_images_of_a_layout_are_compared_one_after_another(scorer):
    both = [
        pair for pairs in zip(records(IMAGES), records(2 * IMAGES), strict=True) for pair in pairs
    ]
    one, two = direct(IMAGES, PHOTOGRAPHS), direct(2 * IMAGES, PHOTOGRAPHS)
    expected = {name: (one[name] + two[name]) / 2 for name in one}
    assert distances(scorer, both) == pytest.approx(expected)
    with pytest.raises(ValueError, match="some layouts have 2 images and others fewer"):
        distances(scorer, both[:-1])


def test_a_comparison_of_unlike_numbers_is_refused(scorer):
    for distance in scorer.distances:
        with pytest.raises(ValueError, match="1 of 51 layouts have no photograph, such as '60'"):
            distance.measure(records(IMAGES[:51], start=10))
        assert distance.measure(records(IMAGES, start=100)) is None
        assert distance.measure([]) is None and distance.measure(records(IMAGES[:1])) is None
    with pytest.raises(ValueError, match="two photographs have the same id"):
        photograph_distances(records(PHOTOGRAPHS) + records(PHOTOGRAPHS[:1]))


def test_few_images_are_warned_of(scorer):
    fid = scorer.distances[0]
    with pytest.warns(UserWarning, match="FID of 60 images means little: .* more than 2048"):
        fid.measure(records(IMAGES))
    enough = RNG.standard_normal((2049, 2)).astype(np.float16)
    photograph_distances(records(enough))[0].measure(records(enough))
