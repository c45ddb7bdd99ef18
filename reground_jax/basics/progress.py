"""Reports the progress of a pipeline call to a function, in a progress bar, or not at all."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def reporting(
    progress: Callable[[int, int, int], None] | bool | None, batches: int, steps: int
) -> Iterator[Callable[[int], Callable[[int], None] | None]]:
    """Yields a function that returns what `Session` reports to, by batch index.

    progress: a function of (batch, number of batches, steps done in it), or True for a progress bar
    over all `batches` of `steps` steps each.
    """
    if callable(progress):
        yield lambda batch: lambda done: progress(batch, batches, done)
    elif progress:
        from tqdm.auto import tqdm

        with tqdm(total=batches * steps, unit="step") as bar:
            yield lambda batch: lambda done: _show(bar, batch * steps + done)
    else:
        yield lambda batch: None


def _show(bar: Any, done: int) -> None:
    bar.update(done - bar.n)
