"""Sources of training examples, and the thread that prefetches batches of them.

A `Source` always gives the same examples for the same index, so a resumed run gets exactly the
batches that it would have gotten uninterrupted.
"""

import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from reground_jax.layout import Layout
from reground_jax.readers.annotated import Annotated, cropped

TRIES = 16  # images in a row: if none of 16 can be read, something is wrong
NAMED = 5  # how many unreadable images get a warning each


@dataclass(frozen=True)
class Example:
    """An image and its annotation: `layout` holds the caption as `prompt`, phrases and boxes.

    labels  the class of each pixel, from a source that knows it; 0 is background
    """

    image: UInt8[np.ndarray, "S S 3"]
    layout: Layout
    labels: UInt8[np.ndarray, "S S"] | None = None


@runtime_checkable
class Source(Protocol):
    """Any endless supply of batches of examples (objects with the fields of Example)."""

    def batch(self, index: int, batch_size: int) -> Sequence[Any]:
        """The `batch_size` examples of batch `index`; every call returns the same ones."""
        ...


class Files:
    """Annotated image files as a source: each epoch shows every image once, in a new order.

    An unreadable image does not stop a run: the next one of the epoch replaces it, and a warning
    names it. `batch` raises ValueError only if `TRIES` images in a row cannot be read.
    """

    def __init__(
        self,
        entries: Sequence[Annotated],
        *,
        image_size: int,
        max_boxes: int = 30,
        seed: int = 0,
        flip: bool = False,
    ):
        """flip: mirror half of the examples, with their boxes; captions stay, as in GLIGEN.

        Raises ValueError if `entries` is empty.
        """
        if not entries:
            raise ValueError("no examples to train on: every entry was rejected or missing")
        self.entries, self.image_size = entries, image_size
        self.max_boxes, self.seed, self.flip = max_boxes, seed, flip
        self.unreadable: set[Path] = set()  # those encountered so far
        self._last_order: tuple[int, np.ndarray] | None = None  # (epoch, its order)

    def batch(self, index: int, batch_size: int) -> list[Example]:
        """Images and boxes are center-cropped to a square and scaled (`readers/annotated.py`)."""
        return [self._example(index * batch_size + i) for i in range(batch_size)]

    def _example(self, position: int) -> Example:
        epoch, place = divmod(position, len(self.entries))
        order, reason = self._order(epoch), ""
        tries = min(TRIES, len(order))
        for later in range(tries):
            entry = self.entries[order[(place + later) % len(order)]]
            # Successive epochs cycle through an image's captions.
            caption = entry.captions[epoch % len(entry.captions)] if entry.captions else ""
            try:
                made = cropped(entry, caption, size=self.image_size, max_boxes=self.max_boxes)
                return mirrored(*made) if self._flips(position) else Example(*made)
            except ValueError as error:
                reason = str(error)
                self._leave_out(entry.path, reason)
        raise ValueError(
            f"{tries} images in a row could not be used (the last one: {reason}); check that the "
            "image folder is correct"
        )

    def _flips(self, position: int) -> bool:
        return self.flip and bool(np.random.default_rng((self.seed, position, 1)).integers(2))

    def _order(self, epoch: int) -> np.ndarray:
        last = self._last_order
        if last is None or last[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            last = self._last_order = epoch, rng.permutation(len(self.entries))
        return last[1]

    def _leave_out(self, path: Path, reason: str) -> None:
        if path in self.unreadable:
            return
        self.unreadable.add(path)
        count = len(self.unreadable)
        if count <= NAMED or count.bit_count() == 1:  # then at every doubling
            warnings.warn(
                f"{reason}: using another image instead ({count} unreadable so far); "
                "fix or remove its entry",
                stacklevel=2,
            )


def mirrored(image: UInt8[np.ndarray, "S S 3"], layout: Layout) -> Example:
    """The example with left and right exchanged."""
    boxes = [(1 - x1, y0, 1 - x0, y1) for x0, y0, x1, y1 in layout.boxes]
    return Example(np.ascontiguousarray(image[:, ::-1]), replace(layout, boxes=boxes))


def prefetch(make: Callable[[int], Any], start: int, *, ahead: int = 4) -> Iterator[Any]:
    """Yields make(start), make(start + 1), ..., computing up to `ahead` of them in a thread.

    An error in `make` is raised in place of its batch. Closing the iterator ends the thread.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def offer(item: tuple[Any, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        index = start
        while not stopped.is_set():
            try:
                offer((make(index), None))
            except BaseException as error:  # re-raised in the consumer: no batch is lost
                return offer((None, error))
            index += 1

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch
    finally:
        stopped.set()
        thread.join()
