"""An auxiliary loss on fuser attention: cells inside a box should attend to that box's token.

GLIGEN learns this from denoising alone and ignores boxes for tens of thousands of steps before it
follows them. Direct supervision gets even a short run past that phase. Only training uses the loss;
the network and sampling are unchanged.
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reground_jax.networks.grounding.text import Grounding
from reground_jax.regions import inside_boxes, level_size
from reground_jax.training.means import ratio

ENOUGH = 0.3  # the loss stops rewarding attention above this share of a cell's attention


def mean_box_attention_loss(
    maps: Iterable[Float[Array, "B N _ _"]], grounding: Grounding, height: int, width: int
) -> Float[Array, ""]:
    """The mean of `box_attention_loss` over the maps of fusers. height, width: of the latents."""
    mask = jnp.asarray(grounding.mask)
    losses = []
    for attention in maps:
        cells = attention.shape[2]
        inside = inside_boxes(grounding.boxes, mask, *level_size(height, width, cells))
        # The share of each cell's attention to each grounding token, averaged over heads.
        losses.append(box_attention_loss(attention.mean(1)[..., cells:], inside, mask))
    return jnp.stack(losses).mean()


def box_attention_loss(
    attention: Float[Array, "B T G"], inside: Bool[Array, "B T G"], mask: Float[Array, "B G"]
) -> Float[Array, ""]:
    """Penalizes too little attention to a cell's own boxes, plus attention to other boxes.

    In nats: the positive part of log(ENOUGH / attention to own tokens), averaged over covered
    cells, plus the mean over all cells of -log(1 - attention to other tokens). Runs inside a step
    over devices: devices have unequal numbers of covered cells, so the first mean is taken over
    the whole batch.
    """
    covered = inside.any(-1)
    own = (attention * inside).sum(-1)
    others = (attention * (mask[:, None] > 0) * ~inside).sum(-1)
    lack = jax.nn.relu(math.log(ENOUGH) - jnp.log(own + 1e-6)) * covered
    return ratio(lack.sum(), covered.sum()) - jnp.log1p(-jnp.minimum(others, 0.99)).mean()
