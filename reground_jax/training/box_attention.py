"""An auxiliary loss on fuser attention: cells inside a box should attend to that box's token.

GLIGEN learns this from denoising alone and ignores boxes for tens of thousands of steps before it
follows them. Direct supervision gets even a short run past that phase. Only training uses the loss;
the network and sampling are unchanged.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reground_jax.networks.attention import Attend
from reground_jax.networks.grounding.text import Grounding
from reground_jax.regions import inside_boxes, level_size
from reground_jax.training.means import ratio

ENOUGH = 0.3  # the loss stops rewarding attention above this share of a cell's attention


class Watch:
    """Wraps an `attend` function and records the loss of every call from a fuser.

    Fuser calls are recognized by the number of keys: cells plus grounding tokens. Use a new
    instance for each trace, since `losses` holds that trace's values.
    """

    def __init__(self, attend: Attend, grounding: Grounding, height: int, width: int):
        """height, width: size of the latents."""
        self.attend, self.grounding, self.size = attend, grounding, (height, width)
        self.losses: list[Float[Array, ""]] = []

    def __call__(
        self, q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], v: Float[Array, "B S N D"]
    ) -> Float[Array, "B T N D"]:
        cells, tokens = q.shape[1], self.grounding.mask.shape[1]
        if k.shape[1] == cells + tokens:
            mask = jnp.asarray(self.grounding.mask)
            size = level_size(*self.size, cells)
            inside = inside_boxes(self.grounding.boxes, mask, *size)
            attention = grounding_attention(q, k, tokens)
            self.losses.append(box_attention_loss(attention, inside, mask))
        return self.attend(q, k, v)

    def mean_loss(self) -> Float[Array, ""]:
        """The mean over all recorded fuser calls."""
        return jnp.stack(self.losses).mean()


def grounding_attention(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], tokens: int
) -> Float[Array, "B T G"]:
    """The share of each cell's attention to each of the last `tokens` keys, averaged over heads."""
    logits = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).mean(1)[..., -tokens:]


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
