"""An array that is still in its file: where it is, and how to read it.

Both source formats lead here: past their headers, a safetensors file and a torch zip are raw bytes
at known offsets. Arrays are read one at a time with plain reads. A memory map would save a copy,
but its touched pages count as resident memory of the process until it is closed.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

MOST_AXES = 32  # in any NumPy version
LARGEST = 2**59  # elements; at 16 bytes each, their bytes still fit the 63 bits of NumPy's sizes


@dataclass(frozen=True)
class StoredArray:
    """`shape` elements of `dtype`, the first one `offset` bytes into the file at `path`.

    `strides` counts elements, not bytes, as torch does; None means row-major and contiguous.
    """

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """How many consecutive elements of the file the array spans."""
        if self.strides is None:
            return self.size
        return reach(self.shape, self.strides)

    @property
    def transposed(self) -> "StoredArray":
        """The same numbers with the axes in reverse order."""
        strides = self.strides or contiguous_strides(self.shape)
        return replace(self, shape=self.shape[::-1], strides=strides[::-1])

    def rows(self, which: int, parts: int) -> "StoredArray":
        """One of so many equal parts along the first axis, which they divide."""
        count = self.shape[0] // parts
        strides = self.strides or contiguous_strides(self.shape)
        offset = self.offset + which * count * strides[0] * self.dtype.itemsize
        return replace(self, offset=offset, shape=(count, *self.shape[1:]))

    def read(self) -> np.ndarray:
        """The array, of `shape` and `dtype`, row-major, in its own memory.

        Raises ValueError if the file ends before the array does, or if memory runs out.
        """
        expected = self.span * self.dtype.itemsize
        try:
            buffer = np.empty(expected, np.uint8)
        except MemoryError as error:
            raise ValueError(
                f"{self.path}: an array of shape {self.shape} needs {expected} bytes of memory, "
                "more than is available; use a machine with more memory"
            ) from error
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            found = read_fully(file, buffer)
        if found != expected:
            raise ValueError(
                f"{self.path} is truncated: an array of shape {self.shape} needs {expected} bytes "
                f"at offset {self.offset}, but only {found} are left; copy or download it again"
            )
        flat = buffer.view(self.dtype)
        if self.strides is None:
            return flat.reshape(self.shape)
        strides = tuple(stride * self.dtype.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).copy()


def is_count(number: Any) -> bool:
    """Whether a number from a file can be a size, a stride or an offset in elements."""
    return type(number) is int and 0 <= number < LARGEST


def is_shape(shape: Sequence[Any]) -> bool:
    """Whether NumPy allows this shape. Its size limit ignores zeros among the axes."""
    return (
        len(shape) <= MOST_AXES
        and all(map(is_count, shape))
        and math.prod(n or 1 for n in shape) < LARGEST
    )


def reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided array, inclusive."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides of `shape`, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def read_fully(file: io.FileIO, into: np.ndarray) -> int:
    """Fills `into`, a flat uint8 array, from the file; returns the number of bytes read.

    A single `readinto` may read less than requested: Linux stops at 2 GiB.
    """
    done = 0
    while done < len(into):
        count = file.readinto(into[done:].data)
        if not count:
            break
        done += count
    return done
