"""`reground-jax batch` that pauses at a given point, for tests that kill it or inspect it.

A program: `python -m tests.batch_hold ARGUMENTS...` is the command line. With HOLD=UNITS:FILE in
the environment, a run pauses once it has recorded UNITS finished units, until FILE exists.
"""

import itertools
import os
import sys
import time
from pathlib import Path

from reground_jax.batch.manifest import Entry, Manifest
from reground_jax.cli import main


def hold_if_asked() -> None:
    if "HOLD" not in os.environ:
        return
    units, _, release = os.environ["HOLD"].partition(":")
    add, noted = Manifest.add, itertools.count(1)

    def held(self: Manifest, entry: Entry) -> None:
        add(self, entry)
        if next(noted) >= int(units):
            while not Path(release).exists():
                time.sleep(0.01)

    Manifest.add = held


if __name__ == "__main__":
    hold_if_asked()
    sys.exit(main(sys.argv[1:]))
