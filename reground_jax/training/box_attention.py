"""A loss on where fusers look: each cell inside a box at that box's grounding token.

GLIGEN learns this from denoising alone, and boxes are ignored for tens of thousands of steps before
they are followed. Told so directly, a short run gets over it. The loss is only a help to training:
network and sampling know nothing of it.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from reground_jax.networks.attention import Attend
from reground_jax.networks.grounding.text import Grounding
from reground_jax.regions import inside_boxes, level_size
from reground_jax.training.means import ratio

ENOUGH = 0.3  # share of a cell's attention from which more is not asked for


class Watch:
    """An `attend` that computes what another computes, and notes the loss of every fuser's call.

    Fusers are told by their keys: the cells themselves and then the grounding tokens. Use one per
    trace: `losses` holds values of the trace that it was called in.
    """

    def __init__(self, attend: Attend, grounding: Grounding, height: int, width: int):
        """height, width: of the latents."""
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
        """Over all fusers that have called."""
        return jnp.stack(self.losses).mean()


def grounding_attention(
    q: Float[Array, "B T N D"], k: Float[Array, "B S N D"], tokens: int
) -> Float[Array, "B T G"]:
    """The share of each cell's attention that each of the last `tokens` keys gets, over heads."""
    logits = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).mean(1)[..., -tokens:]


def box_attention_loss(
    attention: Float[Array, "B T G"], inside: Bool[Array, "B T G"], mask: Float[Array, "B G"]
) -> Float[Array, ""]:
    """How far covered cells look too little at their boxes, plus all cells at other boxes.

    In nats: mean log of ENOUGH over what the own tokens get, and -log(1 - what the others get).
    Runs inside a step over devices: the first is a mean over the batch's covered cells, of which
    the devices have unequal numbers.
    """
    covered = inside.any(-1)
    own = (attention * inside).sum(-1)
    others = (attention * (mask[:, None] > 0) * ~inside).sum(-1)
    lack = jax.nn.relu(math.log(ENOUGH) - jnp.log(own + 1e-6)) * covered
    return ratio(lack.sum(), covered.sum()) - jnp.log1p(-jnp.minimum(others, 0.99)).mean()
