"""Resizing as torch and TensorFlow 1 do it, which `jax.image.resize` does not.

torch's "nearest" takes the pixel at or before a position (jax: at the center). Its "bicubic" has
a = -0.75, repeats the edge, and never averages when it makes an image smaller (jax: a = -0.5,
antialiased, renormalized at the edge). TensorFlow 1's "bilinear" puts pixels at their upper left
corners instead of their centers, and never averages either.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Size = tuple[int, int]  # height, width


def resize_nearest(
    x: Shaped[Array | np.ndarray, "B H W *C"], size: Size
) -> Shaped[Array, "B H2 W2 *C"]:
    """torch's `interpolate(mode="nearest")`."""
    rows, columns = (_nearest(x.shape[axis], size[axis - 1]) for axis in (1, 2))
    return jnp.take(jnp.take(x, rows, axis=1), columns, axis=2)


def resize_bicubic(x: Float[Array, "B H W C"], size: Size) -> Float[Array, "B H2 W2 C"]:
    """torch's `interpolate(mode="bicubic", align_corners=False)`."""
    rows, columns = (_bicubic(x.shape[a], size[a - 1]).astype(x.dtype) for a in (1, 2))
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns)


def resize_bilinear_tf1(x: Float[Array, "B H W C"], size: Size) -> Float[Array, "B H2 W2 C"]:
    """TensorFlow 1's `tf.image.resize_bilinear(align_corners=False)`."""
    for axis in (2, 1):
        low, high, share = _corners(x.shape[axis], size[axis - 1])
        share = np.expand_dims(share, [other for other in range(4) if other != axis])
        first, second = (jnp.take(x, index, axis=axis) for index in (low, high))
        x = first + (second - first) * share.astype(x.dtype)
    return x


@functools.cache
def _corners(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `size` pixels the two that it lies between, and how far it is from the first."""
    position = np.arange(size, dtype=np.float32) * np.float32(length / size)
    low = position.astype(np.int32)
    return low, np.minimum(low + 1, length - 1), position - low.astype(np.float32)


@functools.cache
def _nearest(length: int, size: int) -> np.ndarray:
    """The index that each of `size` pixels reads, with torch's float32 rounding."""
    scale = np.float32(length) / np.float32(size)
    index = np.floor(np.arange(size, dtype=np.float32) * scale).astype(np.int32)
    return np.minimum(index, length - 1)


@functools.cache
def _bicubic(length: int, size: int) -> np.ndarray:
    """Weights [size, length] along one axis."""
    position = (np.arange(size) + 0.5) * (length / size) - 0.5
    first = np.floor(position).astype(int)
    weights = np.zeros((size, length))
    for tap in range(-1, 3):
        distance = np.abs(position - (first + tap))
        index = np.clip(first + tap, 0, length - 1)
        np.add.at(weights, (np.arange(size), index), _keys(distance))
    return weights


def _keys(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """The cubic convolution kernel of Keys (1981)."""
    d = distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))
