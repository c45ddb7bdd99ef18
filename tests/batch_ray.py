"""`reground-jax batch --engine ray` with two stub actors, one of which is killed while working.

A program: `python -m tests.batch_ray FOLDER ARGUMENTS...`. Actors leave their ids in FOLDER.
"""

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path

from reground_jax.batch import ray_engine
from reground_jax.cli import batch, main
from reground_jax.cli.sampling import Found
from tests.batch_stub import CHECKSUM, Stub


def drawing(folder: str, run, work) -> Stub:
    (Path(folder) / str(os.getpid())).touch()
    return Stub(run.batch_size, seconds=0.2)


def kill_one(folder: Path, out: Path) -> None:
    """Kills an actor once both are running and a unit is finished."""
    while len(list(folder.iterdir())) < 2 or not any(out.glob("images/0*")):
        time.sleep(0.05)
    victim = next(folder.iterdir())
    os.kill(int(victim.name), signal.SIGKILL)
    victim.rename(folder / f"{victim.name}-killed")


if __name__ == "__main__":
    folder, arguments = sys.argv[1], sys.argv[2:]
    out = Path(arguments[arguments.index("--out") + 1])
    batch.find_model = lambda *_: Found(Path("stub"), CHECKSUM, {})
    drawn = functools.partial(drawing, folder)
    ray_engine.Work = functools.partial(ray_engine.Work, sampler=drawn)  # type: ignore[misc]
    threading.Thread(target=kill_one, args=(Path(folder), out), daemon=True).start()
    sys.exit(main(arguments))
