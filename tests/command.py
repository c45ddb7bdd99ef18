"""Shared by the command line's tests: a request, `main` in this process, and the program."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from reground_jax.cli import main

DATA = Path(__file__).parent / "data"
TEDDY = DATA / "layouts" / "teddy.json"
BEAR = ["--box", "a teddy bear@0,0.09,0.33,0.76", "--box", "a bird@0.55,0.11,1,0.8"]
PROMPT = "a teddy bear sitting next to a bird"
FEW = ["--steps", "2"]  # PLMS needs 2, for a first step and a later one


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def one_error(capsys, argv: list[str]) -> str:
    """The error message for bad input, after checking that nothing else is printed."""
    capsys.readouterr()
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("reground-jax: error: ")
    return line.removeprefix("reground-jax: error: ")


def run_program(*argv: str, home: Path) -> subprocess.CompletedProcess:
    """The installed program, as in a shell; `home` keeps its caches."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    return subprocess.run(
        [sys.executable, "-c", "import sys; from reground_jax.cli import main; sys.exit(main())"]
        + list(argv),
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=600,  # takes about 10 s, or more if many run at once
    )
