"""One sentence for a full disk, whatever the library that met it makes of it."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
# Orbax and TensorStore keep no error number, only such words in a long text.
WORDS = ("ENOSPC", "EDQUOT", "No space left on device", "Disk quota exceeded")


@contextlib.contextmanager
def naming_a_full_disk(place: Path) -> Iterator[None]:
    """Turns errors of a full disk, or of a quota, into an OSError that names `place`."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        sentence = "the disk is full: make room there, or choose another place"
        raise OSError(errno.ENOSPC, sentence, str(place)) from error


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is of a full disk."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(word in str(error) for word in WORDS):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
