"""Being asked to stop: SIGTERM and Ctrl-C are noted, so that a step and its checkpoint can end."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any


class Asked:
    """True once a signal has come; a second Ctrl-C raises KeyboardInterrupt at once."""

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
            print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Notes SIGTERM and Ctrl-C within; on other threads than the main one, where none come, not."""
    asked, before = Asked(), {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup or `&`
                before[number] = signal.signal(number, asked.note)
    except ValueError:  # not the main thread
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
