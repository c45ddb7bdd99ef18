"""What is said on stderr while work is under way; results go to stdout."""

import os
import sys
import time
from typing import Any

from reground_jax.basics.wording import plural

# A bar in images and time, without a rate in units of which there may be less than one per second.
COUNTED = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} images [{elapsed}<{remaining}]"
HEARTBEAT = 60.0  # seconds between two lines of progress where there is no terminal
SLOW_REDRAW = 10  # seconds between two drawings of a bar in a file, where each is a line that stays


def say(message: str) -> None:
    print(f"reground-jax: {message}", file=sys.stderr)


def hint(message: str) -> None:
    """A word before a silence, for somebody who watches: nothing in a log."""
    if sys.stderr.isatty():
        say(message)


class Bar:
    """A progress bar that appears with the first report of progress.

    So an error before it leaves its one sentence alone; and where the first piece of work is
    reported, and not its beginning, the rate is that without the compiler.
    """

    def __init__(self, label: str, **options: Any):
        """options: of tqdm."""
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
    """A bar of images on a terminal, one per machine; else a line a minute."""

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
