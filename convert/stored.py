"""An array that still lies in its file: where it is, and how to read it.

Both source formats end here: a safetensors file and a torch zip are, past their headers, raw bytes
at known offsets. Arrays are read one at a time with plain reads. A memory map would save a copy,
but its touched pages count as resident memory of the process until it is closed.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MOST_AXES = 32  # of any NumPy
LARGEST = 2**59  # elements of 16 bytes are then within the 63 bits that NumPy counts bytes with


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
        """How many consecutive elements of the file the array reaches over."""
        if self.strides is None:
            return self.size
        return reach(self.shape, self.strides)

    def read(self) -> np.ndarray:
        """The array, of `shape` and `dtype`, row-major, in memory of its own.

        Raises ValueError if the file ends before the array does, or memory does.
        """
        expected = self.span * self.dtype.itemsize
        try:
            buffer = np.empty(expected, np.uint8)
        except MemoryError as error:
            raise ValueError(
                f"{self.path}: an array of shape {self.shape} needs {expected} bytes of memory, "
                "more than there are; use a machine with more"
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
    """Whether NumPy has arrays of this shape. The numbers beside a 0 have the same limit to it."""
    return (
        len(shape) <= MOST_AXES
        and all(map(is_count, shape))
        and math.prod(n or 1 for n in shape) < LARGEST
    )


def reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last one of a strided array, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides of `shape`, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def read_fully(file: io.FileIO, into: np.ndarray) -> int:
    """Fills `into`, a flat uint8 array, from the file; returns how many bytes there were.

    One `readinto` may return less than asked: Linux stops at 2 GiB.
    """
    done = 0
    while done < len(into):
        count = file.readinto(into[done:].data)
        if not count:
            break
        done += count
    return done
