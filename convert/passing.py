"""The last step of an array on its way to a model directory: cast, checked and counted."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from .keys import Leaf

CHECKED = 2**18  # values at a time, so that the NaN check takes no memory

Progress = Callable[[int, int], None]  # (parameters done, total)


def passed(
    arrays: Iterable[tuple[Leaf, np.ndarray]],
    total: int,
    dtype: np.dtype | None,
    progress: Progress | None,
    refuse: Callable[[Leaf, np.dtype], None],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays by path, in `dtype` or their own.

    total: of parameters, for `progress`. refuse: raises the error for an array with NaN or infinity
    in the dtype that is to be stored.
    """
    done = 0
    for leaf, array in arrays:
        if dtype is not None:
            with np.errstate(over="ignore"):  # `is_finite` finds it
                array = array.astype(dtype, copy=False)
        if not is_finite(array):
            refuse(leaf, array.dtype)
        yield leaf.path, array
        done += array.size
        if progress is not None:
            progress(done, total)


def is_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite."""
    flat = array.reshape(-1)
    return all(
        np.isfinite(flat[start : start + CHECKED]).all() for start in range(0, flat.size, CHECKED)
    )
