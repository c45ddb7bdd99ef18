"""One clear error for a full disk, whichever library runs into it."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
# Orbax and TensorStore drop the error number and only keep these words in a long message.
WORDS = ("ENOSPC", "EDQUOT", "No space left on device", "Disk quota exceeded")


@contextlib.contextmanager
def naming_a_full_disk(place: Path) -> Iterator[None]:
    """Turns disk-full and quota errors into an OSError that names `place`."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        sentence = "the disk is full: free some space, or choose another destination"
        raise OSError(errno.ENOSPC, sentence, str(place)) from error


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a disk-full error."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(word in str(error) for word in WORDS):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
