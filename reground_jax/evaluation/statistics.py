"""Turns records into numbers with confidence intervals, by a paired bootstrap over images.

A statistic is a function of records and weights [R, N]: how often each of N images counts in each
of R resamples. Conditions measured on the same layouts share their weights, which makes the
bootstrap paired: the interval of a difference is computed from the differences in each resample.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

Record = dict[str, Any]  # a scorer's result for one image, as plain JSON
Weights = Float[np.ndarray, "R N"]
Interval = tuple[float, float, float]  # estimate, low, high
Statistic = Callable[[Sequence[Record], Weights], Float[np.ndarray, "R"]]

RESAMPLES = 2000
LEVEL = 0.95  # of the intervals
ROWS = 1024  # of a matrix of kernels at a time


def bootstrap_weights(count: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Weights:
    """Row 0 counts every image once, for the estimate; the others sample with replacement."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.concatenate([np.ones((1, count)), drawn]).astype(np.float64)


def interval(values: Float[np.ndarray, "R"], level: float = LEVEL) -> Interval:
    """(estimate, low, high) of a statistic's values, from the percentiles of its resamples.

    NaN if the statistic is undefined, as when nothing was asked for.
    """
    rest = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(rest):
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2])
    return float(values[0]), float(low), float(high)


def above_curve(
    x: Float[np.ndarray, "R"],
    y: Float[np.ndarray, "R"],
    curve_x: Float[np.ndarray, "G R"],
    curve_y: Float[np.ndarray, "G R"],
) -> Float[np.ndarray, "R"]:
    """How far y lies above the line through the curve's points, at the same x.

    Computed separately for each resample, so that the bootstrap stays paired. NaN beyond the
    curve's ends; all NaN if more than 1 % of the resamples are, since the rest would be misleading.
    """
    order = np.argsort(curve_x, axis=0)
    line_x = np.take_along_axis(curve_x, order, 0).T
    line_y = np.take_along_axis(curve_y, order, 0).T
    ends = {"left": np.nan, "right": np.nan}
    line = np.array([np.interp(at, *xy, **ends) for at, *xy in zip(x, line_x, line_y, strict=True)])
    return y - line if np.isnan(line).mean() <= 0.01 else np.full_like(y, np.nan)


def share(*names: str) -> Statistic:
    """The share that is shown of everything that was asked for under these names.

    Each name is a field of a record, [shown, asked for].
    """

    def statistic(records: Sequence[Record], weights: Weights) -> Float[np.ndarray, "R"]:
        pairs = np.array([[record[name] for name in names] for record in records], np.float64)
        shown, asked = (weights @ pairs.sum(1)).T  # pairs [N, names, 2]
        return np.divide(shown, asked, out=np.full_like(shown, np.nan), where=asked > 0)

    return statistic


def mean(name: str) -> Statistic:
    """The mean over images of this field of a record, a number or a flag."""

    def statistic(records: Sequence[Record], weights: Weights) -> Float[np.ndarray, "R"]:
        total = weights @ np.array([record[name] for record in records], np.float64)
        count = weights.sum(1)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    return statistic


class Gaussian:
    """Mean [D] and covariance [D, D] of features."""

    def __init__(self, mean: Float[np.ndarray, "D"], covariance: Float[np.ndarray, "D D"]):
        self.mean, self.covariance = np.asarray(mean), np.asarray(covariance)

    @classmethod
    def of(cls, features: Shaped[np.ndarray, "N D"]) -> "Gaussian":
        features = np.asarray(features, np.float64)
        return cls(features.mean(0), np.cov(features, rowvar=False))

    @functools.cached_property
    def root(self) -> Float[np.ndarray, "D D"]:
        """The square root of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), as in FID (arXiv 1706.08500).

    It is biased by the number of images: compare only distances over equal numbers of them. The
    square root is that of b's covariance, kept for further distances to it.
    """
    eigenvalues = np.linalg.eigvalsh(b.root @ a.covariance @ b.root)
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    trace -= 2 * np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    return float(np.square(a.mean - b.mean).sum() + trace)


def kernel_distance(a: Shaped[np.ndarray, "N D"], b: Shaped[np.ndarray, "M D"]) -> float:
    """The squared maximum mean discrepancy of features, as in KID (arXiv 1801.01401).

    Its kernel is (x y / D + 1)^3. The estimate is unbiased, so it may be negative; N and M are at
    least 2.
    """
    n, m = len(a), len(b)
    within_a = (_kernel_sum(a, a) - _kernel(a, a, "nd,nd->n").sum()) / (n * (n - 1))
    within_b = (_kernel_sum(b, b) - _kernel(b, b, "nd,nd->n").sum()) / (m * (m - 1))
    return float(within_a + within_b - 2 * _kernel_sum(a, b) / (n * m))


def _kernel_sum(a: Shaped[np.ndarray, "N D"], b: Shaped[np.ndarray, "M D"]) -> float:
    """Over all pairs, some rows at a time."""
    parts = (a[start : start + ROWS] for start in range(0, len(a), ROWS))
    return sum(float(_kernel(part, b, "nd,md->nm").sum()) for part in parts)


def _kernel(
    a: Shaped[np.ndarray, "N D"], b: Shaped[np.ndarray, "M D"], pairs: str
) -> Float[np.ndarray, "..."]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (np.einsum(pairs, a, b, optimize=True) / a.shape[1] + 1) ** 3
