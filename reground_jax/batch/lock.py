"""One process per share of a run: a lock on a local file, a lease on an object store.

The system releases a file lock when its process ends, however it ends. A lease is an object with
the time of its last heartbeat; it expires LAPSE seconds after its process is killed. It is best
effort: two processes that check at the same moment may both take it, and then make the same images
twice.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.basics.json_text import parse_json

TRIES, PAUSE = 4, 0.1  # for a file lock: others hold it briefly to clean up after a killed process
HEARTBEAT = 30.0  # seconds between renewals of a lease
LAPSE = 120.0  # seconds without renewal after which a lease expires


def holder() -> str:
    """This process, as a lock's holder is named in messages."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextlib.contextmanager
def file_lock(path: Path, holder: str) -> Iterator[None]:
    """Holds a lock that is released when this process ends.

    Raises ValueError that names its holder, or if the system has no such locks (Windows).
    """
    try:
        import fcntl
    except ImportError as error:
        raise ValueError("this system has no file locks: run `batch` on Linux or macOS") from error

    with open(path, "a+", encoding="utf-8", errors="replace") as file:
        for tries_left in reversed(range(TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    file.seek(0)
                    raise ValueError(_taken(path.as_posix(), file.read().strip())) from None
                time.sleep(PAUSE)
        os.ftruncate(file.fileno(), 0)
        file.write(holder)
        file.flush()
        yield


@contextlib.contextmanager
def lease(fs: Any, path: str, holder: str) -> Iterator[None]:
    """The same on an fsspec file system, with a thread that renews it."""
    held = Lease(fs, path, holder)
    held.take()
    over = threading.Event()

    def renew() -> None:
        while not over.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # the store may be unreachable for a while
                held.renew()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        held.give_back()


class Lease:
    """An object that records who is working on a share, and when they last renewed it."""

    def __init__(self, fs: Any, path: str, holder: str):
        self.fs, self.path, self.holder = fs, path, holder
        self.token = uuid.uuid4().hex  # process ids are reused, especially in containers

    def take(self) -> None:
        """Raises ValueError if another process holds it."""
        found = self._found()
        age = time.time() - found["time"] if found else LAPSE
        if found and age < LAPSE:
            raise ValueError(
                f"{_taken(self.path, found['holder'])}; if it was killed, its lease expires in "
                f"{LAPSE - age:.0f} s"
            )
        self._sign()

    def renew(self) -> None:
        """Does nothing if another process took it while this one was stalled for over LAPSE."""
        if self._is_mine():
            self._sign()

    def give_back(self) -> None:
        if self._is_mine():
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.path)

    def _sign(self) -> None:
        value = {"holder": self.holder, "time": time.time(), "token": self.token}
        self.fs.pipe_file(self.path, json.dumps(value).encode())

    def _is_mine(self) -> bool:
        found = self._found()
        return found is None or found.get("token") == self.token

    def _found(self) -> dict[str, Any] | None:
        """The stored lease; None if it is missing or damaged."""
        try:
            found = parse_json(self.fs.cat_file(self.path))
        except (FileNotFoundError, ValueError):
            return None
        fits = (
            isinstance(found, dict)
            and isinstance(found.get("time"), (int, float))
            and isinstance(found.get("holder"), str)
        )
        return found if fits else None


def _taken(path: str, holder: str) -> str:
    return (
        f"another process is working on this share of the output ({holder or 'unknown'} holds "
        f"{path}): wait for it, or give each process its own --host-index"
    )
