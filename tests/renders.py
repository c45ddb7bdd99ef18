"""The first held-out renders, as test data: `python -m tests.renders ARTWORK.npz` writes them."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.emoji.artwork import load_artwork
from reground_jax.emoji.cases import heldout_cases
from reground_jax.emoji.world import World, WorldConfig
from reground_jax.evaluation.cases import Case
from reground_jax.images import save_png

COUNT = 32
SHEET = Path(__file__).parent / "data" / "emoji" / "renders.png"


@cache
def renders() -> tuple[UInt8[np.ndarray, "B S S 3"], list[Case]]:
    """The images, and the cases that they show."""
    with Image.open(SHEET) as picture:
        pixels = np.asarray(picture)
    return pixels.reshape(COUNT, -1, *pixels.shape[1:]), heldout_cases(COUNT)


if __name__ == "__main__":
    examples = World(WorldConfig(), load_artwork(sys.argv[1])).heldout(COUNT)
    save_png(SHEET, np.concatenate([example.image for example in examples]))
