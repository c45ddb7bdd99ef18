"""ConvNeXt (Liu et al. 2022) without its head, as in GLIGEN's `convnext.py`."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reground_jax.networks.layers import Conv, LayerNorm, Linear, per_channel

EPS = 1e-6  # of every LayerNorm
UNPADDED = ((0, 0), (0, 0))


class ConvNeXtBlock(nnx.Module):
    """x + gamma * MLP(LayerNorm(depthwise 7x7 convolution of x)), with the exact GELU."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.dwconv = Conv(
            width, width, kernel=7, padding=((3, 3), (3, 3)), groups=width, rngs=rngs
        )
        self.norm = LayerNorm(width, eps=EPS, rngs=rngs)
        self.pwconv1 = Linear(width, 4 * width, rngs=rngs)
        self.pwconv2 = Linear(4 * width, width, rngs=rngs)
        self.gamma = nnx.Param(jnp.full((width,), 1e-6))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        h = self.pwconv1(self.norm(self.dwconv(x)))
        h = self.pwconv2(jax.nn.gelu(h, approximate=False))
        return x + per_channel(self.gamma[...].astype(x.dtype), x) * h


class ConvNeXt(nnx.Module):
    """Images [B, H, W, 3] to features at 1/4, 1/8, ... of their size, the last of which it returns.

    `downsample_layers[0]` is the stem, a convolution and then a norm; in the others the norm comes
    first. There is no norm at the end.
    """

    def __init__(self, depths: Sequence[int], widths: Sequence[int], *, rngs: nnx.Rngs):
        stem = Conv(3, widths[0], kernel=4, stride=4, padding=UNPADDED, rngs=rngs)
        layers = [nnx.List([stem, LayerNorm(widths[0], eps=EPS, rngs=rngs)])]
        for fan_in, fan_out in itertools.pairwise(widths):
            norm = LayerNorm(fan_in, eps=EPS, rngs=rngs)
            conv = Conv(fan_in, fan_out, kernel=2, stride=2, padding=UNPADDED, rngs=rngs)
            layers.append(nnx.List([norm, conv]))
        self.downsample_layers = nnx.List(layers)
        self.stages = nnx.List(
            nnx.List(ConvNeXtBlock(width, rngs=rngs) for _ in range(depth))
            for depth, width in zip(depths, widths, strict=True)
        )

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        for layer, stage in zip(self.downsample_layers, self.stages, strict=True):
            first, second = layer
            x = second(first(x))
            for block in stage:
                x = block(x)
        return x


def macs(depths: Sequence[int], widths: Sequence[int], side: int) -> int:
    """Multiply-accumulates for a square image of `side` pixels."""
    total, fan_in, kernel = 0, 3, 4
    for depth, width in zip(depths, widths, strict=True):
        side //= kernel
        area = side * side
        total += area * (fan_in * kernel**2 * width + depth * (49 * width + 8 * width * width))
        fan_in, kernel = width, 2
    return total
