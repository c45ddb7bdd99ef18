"""What is said on stderr while work is under way; results go to stdout."""

import sys
from typing import Any

SLOW_REDRAW = 10  # seconds between two drawings of a bar in a file, where each is a line that stays


def say(message: str) -> None:
    print(f"reground-jax: {message}", file=sys.stderr)


class Bar:
    """A progress bar that appears with the first report of progress.

    So an error before it leaves its one sentence alone, and the rate is that of the work after the
    first piece, which waits for the compiler.
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
