"""One process per share of a run: a lock on a local file, a lease on an object store.

The system drops a file lock when its process ends, however it ends. A lease is an object with the
time of its last heartbeat; it lapses LAPSE seconds after a kill. It is best effort: two processes
that look at the same instant may both take it, and then do the same work twice, to the same bytes.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRIES, PAUSE = 4, 0.1  # for a file lock: others hold it for a moment, to clean up after a kill
HEARTBEAT = 30.0  # seconds between two signs of life of a lease
LAPSE = 120.0  # seconds without one after which a lease counts for nothing


@contextlib.contextmanager
def file_lock(path: Path, holder: str) -> Iterator[None]:
    """Holds a lock that ends with this process. Raises ValueError that names who has it."""
    with open(path, "a+", encoding="utf-8") as file:
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
    try:
        found = json.loads(fs.cat_file(path))
        age = time.time() - found["time"]
    except (FileNotFoundError, ValueError, KeyError):
        pass
    else:
        if age < LAPSE:
            raise ValueError(
                f"{_taken(path, found['holder'])}; if it was killed, its lease ends in "
                f"{LAPSE - age:.0f} s"
            )
    over = threading.Event()

    def sign() -> None:
        fs.pipe_file(path, json.dumps({"holder": holder, "time": time.time()}).encode())

    def renew() -> None:
        while not over.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # a store that is away for a while
                sign()

    sign()
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)


def _taken(path: str, holder: str) -> str:
    return (
        f"another process works on this share of this output ({holder or 'unknown'} holds {path}): "
        "wait for it, or give each process a --host-index of its own"
    )
