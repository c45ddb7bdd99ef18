"""Progress messages, which go to stderr; results go to stdout."""

import os
import sys
import time
from typing import Any

from reground_jax.basics.wording import plural

# A bar of images and time, without a rate, which may be below one image per second.
COUNTED = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} images [{elapsed}<{remaining}]"
HEARTBEAT = 60.0  # seconds between lines of progress if there is no terminal
SLOW_REDRAW = 10  # seconds between redraws of a bar in a file, where each one stays


def say(message: str) -> None:
    print(f"reground-jax: {message}", file=sys.stderr)


def hint(message: str) -> None:
    """Announces a wait to someone at a terminal; adds nothing to a log."""
    if sys.stderr.isatty():
        say(message)


class Bar:
    """A progress bar that appears with the first report of progress.

    So an earlier error leaves only its one sentence; and if the first report comes after some work,
    and not before it, the rate does not include compilation.
    """

    def __init__(self, label: str, **options: Any):
        """options: passed to tqdm."""
        self.options: dict[str, Any] = {"desc": label} | options
        self.bar: Any = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, done: int, total: int) -> None:
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
            return
        from tqdm import tqdm

        interval = 0.1 if sys.stderr.isatty() else SLOW_REDRAW
        self.bar = tqdm(total=total, initial=done, mininterval=interval, **self.options)


class Heartbeat:
    """A bar of images on a terminal, one per machine; otherwise one line per minute."""

    def __init__(self, total: int):
        self.total = total
        self.next = time.monotonic() + HEARTBEAT
        shown = sys.stderr.isatty() and os.environ.get("SLURM_LOCALID", "0") == "0"
        self.bar = Bar("batch", bar_format=COUNTED) if shown else None

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.__exit__()

    def show(self, images: int) -> None:
        if self.bar is not None:
            if images:  # the first batch waits for the compiler
                self.bar.show(images, self.total)
        elif time.monotonic() >= self.next:
            self.next += HEARTBEAT
            say(f"{images} of {plural(self.total, 'image')}")
