"""The columns of an order, coming into being together."""

import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from reground_jax.app.models import Models
from reground_jax.app.order import Order
from reground_jax.devices import compile_clock
from reground_jax.images import Recipe, to_uint8
from reground_jax.session import Canceled, Session

PREVIEWS = 10  # rounds of the columns, after the first step


@dataclass(frozen=True)
class Progress:
    """What there is to show of a run."""

    step: int  # that all columns have reached
    num_steps: int
    images: dict[str, UInt8[np.ndarray, "H W 3"]]  # by column; those not begun are missing
    speed: float | None  # steps per second of one column; None if it is not known yet
    done: bool


class Run:
    """One order on the device. Iterate over it once; another thread may cancel it."""

    def __init__(self, models: Models, order: Order, canceled: threading.Event | None = None):
        self.order, self.models = order, models
        self.canceled = canceled or threading.Event()
        self.warnings: list[str] = []  # of the model, such as words that it does not know
        self._steps, self._seconds = 0, 0.0

    def __iter__(self) -> Iterator[Progress]:
        """Raises Canceled within a step, and ValueError for what the model does not take."""
        total, images = self.order.settings.num_steps, {}
        sessions: dict[str, Session] = {}
        try:
            for stop in stops(total):
                for name in self.order.columns:
                    with self.models.device:
                        if name not in sessions:
                            sessions[name] = self._session(name)
                        images = images | {name: self._advance(sessions[name], stop)}
                    reached = min(s.step for s in sessions.values())
                    all_begun = len(sessions) == len(self.order.columns)
                    reached = reached if all_begun else 0
                    yield Progress(reached, total, images, self._speed(), reached == total)
        finally:
            for session in sessions.values():
                session.cancel()

    def recipe(self, column: str) -> Recipe:
        """What the PNG of a column records."""
        model = self.models[self.order.model]
        return Recipe(
            self.order.layout, self.order.columns[column], self.order.seed, model.name,
            model.description.checksum,
        )  # fmt: skip

    def _session(self, name: str) -> Session:
        if self.canceled.is_set():
            raise Canceled("canceled before the first step")
        settings = self.order.columns[name]
        pipe = self.models.pipeline(self.order.model, str(settings.dtype))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            session = pipe.session(self.order.layout, settings, seeds=self.order.seed)
        messages = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        self.warnings += [message for message in messages if message not in self.warnings]
        return session

    def _advance(self, session: Session, stop: int) -> UInt8[np.ndarray, "H W 3"]:
        """Runs to a step, and returns what there is to see then."""
        started, before = time.perf_counter(), session.step
        with compile_clock() as compiling:
            session.run(stop, progress=self._check)
        if before:  # the first stretch begins with what is the same at all steps
            self._steps += stop - before
            self._seconds += time.perf_counter() - started - compiling()
        if stop < session.num_steps:
            decoded = session.preview()
        else:
            decoded = session.decode(session.finish())
        return to_uint8(np.asarray(decoded), value_range="0..1")[0]

    def _check(self, step: int) -> None:
        if self.canceled.is_set():
            raise Canceled(f"canceled after step {step}")

    def _speed(self) -> float | None:
        return self._steps / self._seconds if self._seconds else None


class Runs:
    """The run of each page that is open, so that its Cancel finds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flags: dict[str, threading.Event] = {}

    def begin(self, page: str) -> threading.Event:
        """The flag that cancels the run that this page asks for now; cancels an earlier one."""
        with self._lock:
            if page in self._flags:
                self._flags[page].set()
            self._flags[page] = threading.Event()
            return self._flags[page]

    def flag(self, page: str) -> threading.Event:
        """The flag of the page's latest run; set if the page has gone away."""
        gone = threading.Event()
        gone.set()
        return self._flags.get(page, gone)

    def cancel(self, page: str) -> None:
        """Whether it is under way or still waits for its turn."""
        with self._lock:
            if page in self._flags:
                self._flags[page].set()

    def forget(self, page: str) -> None:
        """Cancels the run of a page that was closed."""
        self.cancel(page)
        with self._lock:
            self._flags.pop(page, None)


def stops(num_steps: int, previews: int = PREVIEWS) -> list[int]:
    """The steps after which all columns are looked at: the first, every few, and the last."""
    stride = max(1, -(-num_steps // previews))
    return sorted({1, *range(stride, num_steps, stride), num_steps})


def warm_up(models: Models, order: Order) -> None:
    """Runs the first step of an order's columns, so that a first run finds them compiled."""
    for progress in Run(models, order):
        if len(progress.images) == len(order.columns):
            return
