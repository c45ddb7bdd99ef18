"""Hits and statistics, on detections and records whose numbers are known."""

import numpy as np
import pytest

from reground_jax.emoji.average_precision import average_precision, hits
from reground_jax.evaluation.scorers.detections import Detection
from reground_jax.evaluation.statistics import (
    Gaussian,
    above_curve,
    bootstrap_weights,
    frechet_distance,
    interval,
    share,
)

LEFT, RIGHT, TINY = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), (0.4, 0.4, 0.6, 0.6)


def test_the_strongest_detection_of_an_object_is_the_hit():
    wanted = [("cat", LEFT), ("cat", RIGHT), ("dog", LEFT)]
    found = [
        Detection("cat", 0.5, LEFT),  # the first cat again
        Detection("cat", 0.9, (0.0, 0.0, 0.5, 0.4)),
        Detection("cat", 0.8, TINY),  # IoU of 0.03 with either
        Detection("dog", 0.1, RIGHT),  # a dog, but not there
        Detection("bird", 0.7, LEFT),  # nobody asked for one
    ]
    assert hits(found, wanted) == [False, True, False, False, False]
    assert hits([], wanted) == [] and hits(found[:1], []) == [False]


def rows(*pairs: list[int]) -> list[dict]:
    return [{"box": pair, "night": [1, 1]} for pair in pairs]


def test_a_share_is_of_all_objects_not_a_mean_of_images():
    records = rows([1, 1], [0, 3], [0, 0])
    weights = np.array([[1, 1, 1], [2, 0, 1], [0, 0, 1]], float)
    np.testing.assert_allclose(share("box")(records, weights), [0.25, 1, np.nan])
    np.testing.assert_allclose(share("box", "night")(records, weights[:1]), [4 / 7])


def detections(*found: tuple[str, float, int], **objects: int) -> dict:
    return {"detections": [list(one) for one in found], "objects": objects}


def test_average_precision_is_the_area_under_the_envelope():
    records = [
        detections(("cat", 0.9, 1), ("cat", 0.8, 0), ("cat", 0.7, 1), cat=2),
        detections(("dog", 0.6, 0), dog=1, cat=2),
    ]
    # Cats: precision 1, then 2/3, each over a quarter of the recall. Dogs: 0. Then the mean.
    once = np.ones((1, 2))
    np.testing.assert_allclose(average_precision(records, once), [(1 / 4 + 2 / 3 / 4) / 2])
    # The first image alone: recall up to 1, no dogs. The same image twice: the same value.
    weights = np.array([[1, 0], [2, 0]], float)
    np.testing.assert_allclose(average_precision(records, weights), [5 / 6, 5 / 6])


def test_counting_an_image_twice_is_having_it_twice():
    rng = np.random.default_rng(1)
    records = [
        detections(
            *((name, round(rng.random(), 3), int(rng.integers(2))) for name in ("cat", "dog")),
            cat=1, dog=2,
        )
        for _ in range(6)
    ]  # fmt: skip
    weights = np.array([[2, 0, 1, 3, 0, 1]])
    repeated = [r for r, times in zip(records, weights[0], strict=True) for _ in range(times)]
    np.testing.assert_allclose(
        average_precision(records, weights.astype(float)),
        average_precision(repeated, np.ones((1, 7))),
    )


def test_the_bootstrap_is_seeded_and_its_interval_is_that_of_a_proportion():
    count = 400
    records = rows(*([1, 1] if i % 4 else [0, 1] for i in range(count)))
    weights = bootstrap_weights(count)
    np.testing.assert_array_equal(weights, bootstrap_weights(count))
    assert (weights[0] == 1).all() and (weights.sum(1) == count).all()
    estimate, low, high = interval(share("box")(records, weights))
    assert estimate == 0.75
    half = 1.96 * np.sqrt(0.75 * 0.25 / count)  # the normal approximation
    np.testing.assert_allclose([low, high], [0.75 - half, 0.75 + half], atol=0.005)


def test_pairing_makes_the_interval_of_a_constant_difference_a_point():
    """Every image improves by one box: the difference is certain, however the images vary."""
    before = rows(*([i % 5, 6] for i in range(50)))
    after = rows(*([i % 5 + 1, 6] for i in range(50)))
    weights = bootstrap_weights(50)
    values = share("box")(after, weights) - share("box")(before, weights)
    np.testing.assert_allclose(interval(values), [1 / 6, 1 / 6, 1 / 6])
    alone = interval(share("box")(after, weights))
    assert alone[2] - alone[1] > 0.1


def test_a_point_is_compared_with_a_curve_at_its_own_x():
    """The line through (0, 10), (10, 20), (20, 0): 15 at 5, 10 at 15."""
    curve_x, curve_y = np.array([[10.0], [0.0], [20.0]]), np.array([[20.0], [10.0], [0.0]])
    for x, y, above in ((5, 15, 0), (15, 13, 3), (10, 17, -3), (21, 0, np.nan)):
        values = above_curve(np.array([x], float), np.array([y], float), curve_x, curve_y)
        np.testing.assert_allclose(values, [above])


def test_resamples_are_compared_with_their_own_curves():
    curve_x = np.array([[0.0, 10.0], [10.0, 20.0]])
    curve_y = np.array([[0.0, 50.0], [10.0, 60.0]])
    x, y = np.array([5.0, 15.0]), np.array([6.0, 56.0])
    np.testing.assert_allclose(above_curve(x, y, curve_x, curve_y), [1, 1])
    # Half of the resamples lie beyond the end: the others would be misleading.
    beyond = above_curve(np.array([5.0, 25.0]), y, curve_x, curve_y)
    assert np.isnan(beyond).all()


def test_an_interval_of_nothing_is_nan():
    values = share("box")(rows([0, 0]), bootstrap_weights(1))
    assert np.isnan(interval(values)).all()


def test_the_frechet_distance_of_two_normals_is_the_formula():
    a = Gaussian(np.zeros(2), np.diag([1.0, 4.0]))
    b = Gaussian(np.array([3.0, 0.0]), np.diag([9.0, 4.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + (1 - 3) ** 2)  # standard deviations
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])  # rotating both changes nothing
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(13)


def test_features_become_their_mean_and_covariance():
    gaussian = Gaussian.of(np.array([[0.0, 0.0], [2.0, 4.0]]))
    np.testing.assert_allclose(gaussian.mean, [1, 2])
    np.testing.assert_allclose(gaussian.covariance, [[2, 4], [4, 8]])
