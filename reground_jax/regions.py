"""Boxes at the resolutions of a U-Net: which cells lie in which boxes."""

import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float


def level_size(height: int, width: int, cells: int) -> tuple[int, int]:
    """Rows and columns of the U-Net level with `cells` cells; `height`, `width`: of the latents."""
    while height * width > cells:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    assert height * width == cells
    return height, width


def inside_boxes(
    boxes: Float[ArrayLike, "B G 4"], mask: Float[ArrayLike, "B G"], height: int, width: int
) -> Bool[Array, "B T G"]:
    """Whether the center of a cell is in a token's box; T cells in row-major order.

    boxes: xyxy fractions of the image. mask: 0 for null tokens, which have no box.
    """
    y, x = ((jnp.arange(n) + 0.5) / n for n in (height, width))
    y, x = y[None, :, None, None], x[None, None, :, None]
    x0, y0, x1, y1 = jnp.moveaxis(jnp.asarray(boxes), -1, 0)[..., None, None, :]
    rows = (y >= y0) & (y < y1)
    columns = (x >= x0) & (x < x1)
    real = jnp.asarray(mask)[:, None, None] > 0
    return (rows & columns & real).reshape(-1, height * width, real.shape[-1])
