"""FLOP of a training step, from the multiply-accumulates in `counter.py`.

A matrix product or convolution costs one forward pass, one more for the gradient of its input, and
one more for that of its weights if they are trained. The scores of attention have two inputs, so
always three. `remat` adds what it computes again. What comes before the first trained parameter has
no backward pass; it is counted with one, except for networks that are frozen whole. A map's
down-sampler, and what it adds to the first convolution, are not counted.
"""

from reground_jax.config import ModelConfig
from reground_jax.counter import (
    FUSER,
    SCORES,
    text_encoder_macs,
    unet_macs,
    vae_decoder_macs,
    vae_encoder_macs,
)
from reground_jax.readers.annotated import MAX_BOXES
from reground_jax.training.opening import is_diffusion

ABSENT = ("dead_queries",)  # this package computes no queries of grounding tokens
# The share of each part that `remat` computes again: nothing outside of blocks and resnets, and
# no product whose result only leaves them or the attention, such as the last one of each.
AGAIN = {
    "resnets": 1 / 2,
    "feed_forward": 2 / 3,
    **dict.fromkeys(SCORES, 1 / 2),
    **dict.fromkeys(("self_projections", "cross_projections", "fuser_projections"), 1),
    "fuser_feed_forward": 1,
}


def step_flops(kind: str, model: ModelConfig, side: int, *, remat: bool) -> int:
    """FLOP of one image of `side` pixels in a step, including its encoding if there are latents."""
    latent = side // model.vae.downsampling
    encoder = vae_encoder_macs(model.vae, latent, latent)
    if not is_diffusion(kind):
        decoder = vae_decoder_macs(model.vae, latent, latent)
        again = AGAIN["resnets"] if remat else 0  # nearly all of it is resnets
        encodings = 1 if kind == "decoder" else 3 + again
        return round(2 * ((3 + again) * decoder + encodings * encoder))
    text = text_encoder_macs(model.text_encoder.network)
    passes = 3 if kind == "text_to_image" else 1
    return round(2 * (encoder + passes * text + _unet_macs(kind, model, latent, remat)))


def _unet_macs(kind: str, model: ModelConfig, latent: int, remat: bool) -> float:
    grounded, total = kind == "grounding", 0.0
    counted = unet_macs(model.unet, latent, latent, fusers=grounded, max_boxes=MAX_BOXES)
    for part, macs in counted.items():
        if part in ABSENT:
            continue
        trained = not grounded or part in FUSER or part in SCORES
        total += macs * (2 + trained + (AGAIN.get(part, 0) if remat else 0))
    return total
