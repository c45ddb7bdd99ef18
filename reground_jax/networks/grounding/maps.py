"""Grounding by a map of the whole image: edges, depth, normals or semantic classes.

A map is read twice: by a ConvNeXt that makes grounding tokens of it, and by a down-sampler whose
output is appended to the noisy latents. The unconditional branch of guidance has null tokens, but
the same appended channels. Sources: GLIGEN's `{hed,canny,depth,normal,sem}_grounding_net.py` and
`..._grounding_downsampler.py`.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from reground_jax.basics.short_repr import short_repr
from reground_jax.config import MapConfig, UNetConfig
from reground_jax.networks import convnext
from reground_jax.networks.grounding.features import TokenNet, blend, mlp, mlp_macs, through
from reground_jax.networks.layers import Conv
from reground_jax.networks.resample import Size, resize_bicubic, resize_nearest

# Levels 0..255, or classes for the kind "sem".
Pixels = UInt8[Array | np.ndarray, "B H W 3"] | UInt8[Array | np.ndarray, "B H W"]


class Grounding(NamedTuple):
    """A map per sample, as large as the image."""

    map: Pixels
    mask: Float[
        Array | np.ndarray, "B"
    ]  # 1: there is one; 0: null tokens, and the map is still appended

    __repr__ = short_repr

    def null(self) -> "Grounding":
        """The same number of null tokens, for the unconditional branch of guidance."""
        return self._replace(mask=jnp.zeros_like(self.mask))


class PositionNet(TokenNet):
    """A ConvNeXt, and an MLP over its features with learned positions."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        own = _map(config)
        self.side, self.classes, width = own.side, own.classes, own.widths[-1]
        self.in_conv = None if own.classes is None else Conv(own.classes, 3, rngs=rngs)
        self.backbone = convnext.ConvNeXt(own.depths, own.widths, rngs=rngs)
        self.pos_embedding = nnx.Param(jnp.zeros((1, own.tokens, width)))
        self.null_feature = nnx.Param(jnp.zeros((width,)))
        self.linears = nnx.List(mlp(width, config.text_width, rngs=rngs))

    @jax.named_scope("grounding_tokens")
    def __call__(self, grounding: Grounding, *, dtype: DTypeLike) -> Float[Array, "B G E"]:
        """Grounding tokens in `dtype`, in rows of the map from its top."""
        features = self.features(grounding.map, dtype)
        features = features.reshape(len(features), -1, features.shape[-1])
        mask = jnp.broadcast_to(grounding.mask[:, None], features.shape[:2])
        return self._tokens(blend(features, mask, self.null_feature))

    def features(self, pixels: Pixels, dtype: DTypeLike) -> Float[Array, "B h w C"]:
        """The ConvNeXt's features of a map."""
        images = resize_nearest(pixels, (self.side, self.side))
        images = levels(images, self.classes, dtype)
        return self.backbone(images if self.in_conv is None else self.in_conv(images))

    def null_tokens(self, grounding: Grounding, *, dtype: DTypeLike) -> Float[Array, "B G E"]:
        """As many null tokens, for the unconditional branch of guidance; no map is read."""
        batch, (_, count, width) = len(grounding.mask), self.pos_embedding.shape
        null = self.null_feature[...].astype(dtype)
        return self._tokens(jnp.broadcast_to(null, (batch, count, width)))

    def _tokens(self, features: Float[Array, "B G C"]) -> Float[Array, "B G E"]:
        positions = jnp.broadcast_to(self.pos_embedding[...].astype(features.dtype), features.shape)
        return through(self.linears, features + positions)


class Downsampler(nnx.Module):
    """The channels that a map appends to the latents [B, h, w, C], in `MapConfig.channels`.

    Two convolutions of stride 2 over the map at four times the latents' size; for hed only the map.
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        own = _map(config)
        self.classes = own.classes
        self.inputs = own.classes or (3 if config.grounding == "normal" else 1)
        widths = (self.inputs, *own.downsampler) if own.downsampler else ()
        self.layers = nnx.List(
            Conv(fan_in, fan_out, kernel=4, stride=2, rngs=rngs)
            for fan_in, fan_out in itertools.pairwise(widths)
        )

    @jax.named_scope("downsampler")
    def __call__(
        self, grounding: Grounding, size: Size, *, dtype: DTypeLike
    ) -> Float[Array, "B h w X"]:
        """The channels for latents of `size` (h, w)."""
        if self.layers:
            size = (4 * size[0], 4 * size[1])
        if self.classes is not None:
            images = levels(resize_nearest(grounding.map, size), self.classes, dtype)
        else:
            images = levels(grounding.map, None, jnp.float32)[..., : self.inputs]
            images = resize_bicubic(images, size).astype(dtype)
        for i, layer in enumerate(self.layers):
            images = layer(jax.nn.silu(images) if i else images)
        return images


def levels(pixels: Pixels, classes: int | None, dtype: DTypeLike) -> Float[Array, "B H W C"]:
    """Levels 0..255 as -1..1; classes one-hot."""
    if classes is not None:
        return jax.nn.one_hot(pixels, classes, dtype=dtype)
    return (jnp.asarray(pixels, jnp.float32) / 255 * 2 - 1).astype(dtype)


def _map(config: UNetConfig) -> MapConfig:
    assert config.map is not None, config.grounding  # UNetConfig checks it
    return config.map


def macs(config: UNetConfig, tokens: int) -> int:
    """Multiply-accumulates of the position net for one sample; `tokens` are the model's own."""
    own = _map(config)
    into = 0 if own.classes is None else own.side**2 * 9 * own.classes * 3
    backbone = convnext.macs(own.depths, own.widths, own.side)
    return into + backbone + tokens * mlp_macs(own.widths[-1], config.text_width)
