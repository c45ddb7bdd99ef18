"""Where examples come from, and the thread that makes batches of them ahead of the trainer.

A `Source` gives the same examples for the same index, for ever: that is what makes a killed run go
on with the batches that it would have had.
"""

import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from reground_jax.layout import Layout
from reground_jax.readers.annotated import Annotated, cropped

TRIES = 16  # pictures in a row; that 16 of them cannot be read is no accident
NAMED = 5  # pictures that cannot be read, each in a warning of its own


@dataclass(frozen=True)
class Example:
    """A picture and what is in it: `layout.prompt` is the caption, its boxes say what is where."""

    image: UInt8[np.ndarray, "S S 3"]
    layout: Layout


@runtime_checkable
class Source(Protocol):
    """Anything with endless batches of examples (objects with `image` and `layout`)."""

    def batch(self, index: int, batch_size: int) -> Sequence[Any]:
        """The `batch_size` examples of batch `index`; the same ones whenever it is asked."""
        ...


class Files:
    """Annotated image files as a source: each epoch shows every one once, in a new order.

    A picture that cannot be read never stops a run: the next one of the epoch takes its place, and
    a warning names it. Only where `TRIES` in a row cannot be read, batch raises ValueError.
    """

    def __init__(
        self,
        entries: Sequence[Annotated],
        *,
        image_size: int,
        max_boxes: int = 30,
        seed: int = 0,
    ):
        """Raises ValueError if there is no entry."""
        if not entries:
            raise ValueError("there is no example to train on: every entry was rejected or missing")
        self.entries, self.image_size = entries, image_size
        self.max_boxes, self.seed = max_boxes, seed
        self.unreadable: set[Path] = set()  # as far as they have been met
        self._last_order: tuple[int, np.ndarray] | None = None  # of an epoch

    def batch(self, index: int, batch_size: int) -> list[Example]:
        """Images and boxes are cropped to the middle square and scaled (`readers/annotated.py`)."""
        return [self._example(index * batch_size + i) for i in range(batch_size)]

    def _example(self, position: int) -> Example:
        epoch, place = divmod(position, len(self.entries))
        order, reason = self._order(epoch), ""
        tries = min(TRIES, len(order))
        for later in range(tries):
            entry = self.entries[order[(place + later) % len(order)]]
            # One of the captions of an image, by its epoch: epochs go through all of them.
            caption = entry.captions[epoch % len(entry.captions)] if entry.captions else ""
            try:
                made = cropped(entry, caption, size=self.image_size, max_boxes=self.max_boxes)
                return Example(*made)
            except ValueError as error:
                reason = str(error)
                self._leave_out(entry.path, reason)
        raise ValueError(
            f"{tries} pictures in a row cannot be used, the last: {reason}; is the folder of the "
            "images right?"
        )

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
        if count <= NAMED or count.bit_count() == 1:  # then after each doubling
            warnings.warn(
                f"{reason}: another picture takes its place ({count} so far); "
                "correct or remove its entry",
                stacklevel=2,
            )


def prefetch(make: Callable[[int], Any], start: int, *, ahead: int = 4) -> Iterator[Any]:
    """make(start), make(start + 1), ...: up to `ahead` of them made early, in another thread.

    An error in `make` is raised where its batch was to come. Closing the iterator ends the thread.
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
            except BaseException as error:  # the consumer raises it: no batch may vanish
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
