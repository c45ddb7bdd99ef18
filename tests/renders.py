"""The first held-out renders, as test data: `python -m tests.renders ARTWORK.npz` writes them."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from reground_jax.emoji.artwork import load_artwork
from reground_jax.emoji.cases import heldout_cases
from reground_jax.emoji.world import World, WorldConfig
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.pictures import read_sheet, save_sheet

COUNT = 32
SHEET = Path(__file__).parent / "data" / "emoji" / "renders.png"


@cache
def renders() -> tuple[UInt8[np.ndarray, "B S S 3"], list[Case]]:
    """The images, and the cases that they show."""
    return read_sheet(SHEET, COUNT), heldout_cases(COUNT)


if __name__ == "__main__":
    examples = World(WorldConfig(), load_artwork(sys.argv[1])).heldout(COUNT)
    save_sheet(SHEET, np.stack([example.image for example in examples]))
