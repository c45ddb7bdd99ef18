"""InceptionV3 as the Frechet inception distance has it, up to its 2048 pooled features.

The original computes FID with a TensorFlow graph of 2015 (Heusel et al., arXiv 1706.08500), which
pytorch-fid and torch-fidelity have translated; modules are named as there. It differs from the
usual InceptionV3 (Szegedy et al., arXiv 1512.00567): average pools leave the padding out, the last
block has a max pool, and images are resized as by TensorFlow 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, UInt8

from reground_jax.networks.layers import Conv, per_channel
from reground_jax.networks.resample import resize_bilinear_tf1

SIDE = 299  # of the images that it reads
FEATURES = 2048
EPS = 0.001  # of every batch norm
PIXELS = ((0, 0), (1, 1), (1, 1), (0, 0))  # the padding of a pool that keeps the size


class Part(NamedTuple):
    """A convolution, with its batch norm and ReLU."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True  # so that the size stays


Branch = tuple[Part | tuple[Part, ...], ...]  # one after another, or side by side
Pool = Callable[[Float[Array, "B H W C"]], Float[Array, "B H2 W2 C"]]


class ConvNorm(nnx.Module):
    def __init__(self, fan_in: int, part: Part, *, rngs: nnx.Rngs):
        height, width = (side // 2 if part.padded else 0 for side in part.kernel)
        self.conv = Conv(
            fan_in,
            part.width,
            kernel=part.kernel,
            stride=part.stride,
            padding=((height, height), (width, width)),
            bias=False,
            rngs=rngs,
        )
        self.bn = BatchNorm(part.width)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        return jax.nn.relu(self.bn(self.conv(x)))


class BatchNorm(nnx.Module):
    """With the statistics of training."""

    def __init__(self, channels: int):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.running_mean = nnx.Param(jnp.zeros(channels))
        self.running_var = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        scale = self.scale[...] * jax.lax.rsqrt(self.running_var[...] + EPS)
        shift = self.bias[...] - self.running_mean[...] * scale
        return x * per_channel(scale, x) + per_channel(shift, x)


class Block(nnx.Module):
    """Branches side by side, the last one after a pool; their outputs one after another."""

    def __init__(self, fan_in: int, branches: tuple[Branch, ...], pool: Pool, *, rngs: nnx.Rngs):
        self.branches, self.pool, self.width = branches, pool, 0
        for branch in branches:
            width = fan_in
            for parts in map(_side_by_side, branch):
                for part in parts:
                    setattr(self, part.name, ConvNorm(width, part, rngs=rngs))
                width = sum(part.width for part in parts)
            self.width += width

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        inputs = [x] * (len(self.branches) - 1) + [self.pool(x)]
        outputs = []
        for h, branch in zip(inputs, self.branches, strict=True):
            for parts in map(_side_by_side, branch):
                h = jnp.concatenate([getattr(self, part.name)(h) for part in parts], axis=-1)
            outputs.append(h)
        return jnp.concatenate(outputs, axis=-1)


def _side_by_side(parts: Part | tuple[Part, ...]) -> tuple[Part, ...]:
    return (parts,) if isinstance(parts, Part) else parts


def average(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """The mean of 3x3 pixels, those outside the image left out."""
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), PIXELS)
    counts = np.outer(_neighbors(x.shape[1]), _neighbors(x.shape[2]))
    return total / counts[None, :, :, None]


def _neighbors(length: int) -> np.ndarray:
    """How many pixels of a row are at most one from each."""
    return np.convolve(np.ones(length, np.float32), np.ones(3, np.float32), "same")


def largest(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """The largest of 3x3 pixels."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), PIXELS)


def halved(x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    """The largest of 3x3 pixels, in steps of 2."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


ACROSS, DOWN, SQUARE = (1, 7), (7, 1), (3, 3)


def block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        (Part("branch1x1", 64),),
        (Part("branch5x5_1", 48), Part("branch5x5_2", 64, (5, 5))),
        (
            Part("branch3x3dbl_1", 64),
            Part("branch3x3dbl_2", 96, SQUARE),
            Part("branch3x3dbl_3", 96, SQUARE),
        ),
        (Part("branch_pool", pooled),),
    )


BLOCK_B: tuple[Branch, ...] = (
    (Part("branch3x3", 384, SQUARE, 2, False),),
    (
        Part("branch3x3dbl_1", 64),
        Part("branch3x3dbl_2", 96, SQUARE),
        Part("branch3x3dbl_3", 96, SQUARE, 2, False),
    ),
    (),
)


def block_c(inner: int) -> tuple[Branch, ...]:
    return (
        (Part("branch1x1", 192),),
        (
            Part("branch7x7_1", inner),
            Part("branch7x7_2", inner, ACROSS),
            Part("branch7x7_3", 192, DOWN),
        ),
        (
            Part("branch7x7dbl_1", inner),
            Part("branch7x7dbl_2", inner, DOWN),
            Part("branch7x7dbl_3", inner, ACROSS),
            Part("branch7x7dbl_4", inner, DOWN),
            Part("branch7x7dbl_5", 192, ACROSS),
        ),
        (Part("branch_pool", 192),),
    )


BLOCK_D: tuple[Branch, ...] = (
    (Part("branch3x3_1", 192), Part("branch3x3_2", 320, SQUARE, 2, False)),
    (
        Part("branch7x7x3_1", 192),
        Part("branch7x7x3_2", 192, ACROSS),
        Part("branch7x7x3_3", 192, DOWN),
        Part("branch7x7x3_4", 192, SQUARE, 2, False),
    ),
    (),
)
BLOCK_E: tuple[Branch, ...] = (
    (Part("branch1x1", 320),),
    (
        Part("branch3x3_1", 384),
        (Part("branch3x3_2a", 384, (1, 3)), Part("branch3x3_2b", 384, (3, 1))),
    ),
    (
        Part("branch3x3dbl_1", 448),
        Part("branch3x3dbl_2", 384, SQUARE),
        (Part("branch3x3dbl_3a", 384, (1, 3)), Part("branch3x3dbl_3b", 384, (3, 1))),
    ),
    (Part("branch_pool", 192),),
)
STEM: tuple[Part | Pool, ...] = (
    Part("Conv2d_1a_3x3", 32, SQUARE, 2, False),
    Part("Conv2d_2a_3x3", 32, SQUARE, 1, False),
    Part("Conv2d_2b_3x3", 64, SQUARE),
    halved,
    Part("Conv2d_3b_1x1", 80),
    Part("Conv2d_4a_3x3", 192, SQUARE, 1, False),
    halved,
)
BLOCKS: tuple[tuple[str, tuple[Branch, ...], Pool], ...] = (
    ("Mixed_5b", block_a(32), average),
    ("Mixed_5c", block_a(64), average),
    ("Mixed_5d", block_a(64), average),
    ("Mixed_6a", BLOCK_B, halved),
    ("Mixed_6b", block_c(128), average),
    ("Mixed_6c", block_c(160), average),
    ("Mixed_6d", block_c(160), average),
    ("Mixed_6e", block_c(192), average),
    ("Mixed_7a", BLOCK_D, halved),
    ("Mixed_7b", BLOCK_E, average),
    ("Mixed_7c", BLOCK_E, largest),
)


class Inception(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        width = 3
        for part in STEM:
            if isinstance(part, Part):
                setattr(self, part.name, ConvNorm(width, part, rngs=rngs))
                width = part.width
        for name, branches, pool in BLOCKS:
            block = Block(width, branches, pool, rngs=rngs)
            setattr(self, name, block)
            width = block.width

    @jax.named_scope("inception")
    def __call__(self, images: UInt8[Array, "B H W 3"]) -> Float32[Array, "B 2048"]:
        """Features of images of any size."""
        x = resize_bilinear_tf1(images.astype(jnp.float32), (SIDE, SIDE))
        x = (x - 128) / 128
        for part in STEM:
            x = getattr(self, part.name)(x) if isinstance(part, Part) else part(x)
        for name, _, _ in BLOCKS:
            with jax.named_scope(name):
                x = getattr(self, name)(x)
        return x.mean((1, 2))
