"""What a LoRA adds to one weight: the product of two small matrices, which are still in their file.

    W' = W + factor * up . down        https://arxiv.org/abs/2106.09685, section 4.1

A convolution counts as a matrix of [outputs, inputs * height * width], as in LyCORIS' LoCon.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .stored import StoredArray

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Delta:
    """factor * up . down, of rank r."""

    module: str  # as its file names it
    down: StoredArray  # [r, inputs], or [r, inputs, height, width]
    up: StoredArray  # [outputs, r], or [outputs, r, 1, 1]
    factor: float  # scale * alpha / r

    @property
    def shape(self) -> Shape:
        """Of the weight that it is for, without trailing axes of length 1."""
        return squeezed((self.up.shape[0], *self.down.shape[1:]))

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """down [r, n] and up [outputs, r] in float32. Raises ValueError for NaN or infinity."""
        found = []
        for stored in (self.down, self.up):
            with np.errstate(over="ignore"):  # a float64 beyond float32 is found below
                matrix = stored.read().astype(np.float32).reshape(stored.shape[0], -1)
            if not np.isfinite(matrix).all():
                raise ValueError(
                    f"{stored.path}: {self.module} has NaN or infinite values, which would ruin "
                    "every image: the LoRA is damaged; use another copy"
                )
            found.append(matrix)
        return found[0], found[1]

    def array(self, shape: Shape) -> np.ndarray:
        """The product in float32, as `shape`, which differs from its own in axes of length 1."""
        down, up = self.matrices()
        with np.errstate(over="ignore", invalid="ignore"):  # the sum is checked when it is stored
            return (np.float32(self.factor) * (up @ down)).reshape(shape)


def add(weight: np.ndarray, deltas: Sequence[Delta], dtype: np.dtype | None = None) -> np.ndarray:
    """The weight plus all deltas, summed in float32 and rounded once, to `dtype` or its own.

    Without deltas the weight itself, whatever `dtype`.
    """
    if not deltas:
        return weight
    total = weight.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for delta in deltas:
            total += delta.array(weight.shape)
        return total.astype(weight.dtype if dtype is None else dtype)


def squeezed(shape: Shape) -> Shape:
    """A weight's shape without the trailing axes of a 1x1 convolution."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
