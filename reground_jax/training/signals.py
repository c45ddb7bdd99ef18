"""Graceful stopping: SIGTERM and Ctrl-C let the current step finish and be checkpointed."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any


class Asked:
    """True once a signal has arrived; a second Ctrl-C raises KeyboardInterrupt immediately."""

    def __init__(self) -> None:
        self.by_keyboard = self.by_others = False

    def __bool__(self) -> bool:
        return self.by_keyboard or self.by_others

    def note(self, number: int, _: Any) -> None:
        if number != signal.SIGINT:
            self.by_others = True
        elif self.by_keyboard:
            raise KeyboardInterrupt
        else:
            self.by_keyboard = True
            print("\nstopping after this step; Ctrl-C again stops immediately", file=sys.stderr)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Records SIGTERM and Ctrl-C inside the block; does nothing outside the main thread."""
    asked, before = Asked(), {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup or `&`
                before[number] = signal.signal(number, asked.note)
    except ValueError:  # not the main thread
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
