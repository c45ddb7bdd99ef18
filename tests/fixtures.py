"""Where the outputs of reference code lie."""

import os
from pathlib import Path

DATA = Path(__file__).parent / "data"


def fixtures() -> Path:
    """The folder of fixtures: another one with the same file names may be named."""
    return Path(os.environ.get("REGROUND_FIXTURES") or DATA)
