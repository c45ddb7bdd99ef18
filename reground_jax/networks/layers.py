"""The layers that all networks share: parameters in any dtype, arithmetic in the input's.

Every layer casts its parameters to the dtype of its input, so bfloat16 inputs are computed in
bfloat16 whether the weights are float32 (master weights) or bfloat16. Norm statistics are always
float32, with the two-pass variance. `eps` has no default: Stable Diffusion uses both 1e-5 and 1e-6.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    bound = fan_in**-0.5  # torch's default for Linear and Conv2d
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))


def per_channel(values: Float[ArrayLike, "C"], x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """One value per channel, expanded to the rank of `x`: no implicit rank promotion here."""
    return jnp.expand_dims(values, tuple(range(x.ndim - 1)))


class Linear(nnx.Module):
    """y = x @ kernel [in, out] + bias [out], over the last axis."""

    def __init__(self, fan_in: int, fan_out: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.kernel = _uniform(rngs, (fan_in, fan_out), fan_in)
        self.bias = _uniform(rngs, (fan_out,), fan_in) if bias else None

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + per_channel(self.bias[...].astype(x.dtype), y)


class Conv(nnx.Module):
    """2-D convolution, NHWC by HWIO. `padding` is ((top, bottom), (left, right)).

    kernel: its side, or (height, width). groups: the channels are convolved in that many separate
    groups.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        kernel: int | tuple[int, int] = 3,
        stride: int = 1,
        padding: Sequence[tuple[int, int]] = ((1, 1), (1, 1)),
        groups: int = 1,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        fan_in //= groups
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        area = height * width
        self.kernel = _uniform(rngs, (height, width, fan_in, fan_out), fan_in * area)
        self.bias = _uniform(rngs, (fan_out,), fan_in * area) if bias else None
        self.stride, self.padding, self.groups = stride, tuple(padding), groups

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 O"]:
        return self.biased(self.part(x, slice(None)))

    def biased(self, y: Float[Array, "B H W O"]) -> Float[Array, "B H W O"]:
        return y if self.bias is None else y + per_channel(self.bias[...].astype(y.dtype), y)

    def part(self, x: Float[Array, "B H W P"], inputs: slice) -> Float[Array, "B H2 W2 O"]:
        """What some of the input channels add to the output, without the bias."""
        return jax.lax.conv_general_dilated(
            x,
            self.kernel[:, :, inputs].astype(x.dtype),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )


def normalize(x: Float[Array, "... C"], eps: float) -> Float[Array, "... C"]:
    """Zero mean and unit variance over the last axis: LayerNorm before its affine."""
    h = x.astype(jnp.float32)
    h = h - h.mean(-1, keepdims=True)
    return (h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    def __init__(self, channels: int, *, eps: float, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((channels,)))
        self.bias = nnx.Param(jnp.zeros((channels,)))
        self.eps = eps

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        h = normalize(x.astype(jnp.float32), self.eps)
        scale, bias = (per_channel(part[...], x) for part in (self.scale, self.bias))
        return (h * scale + bias).astype(x.dtype)


class GroupNorm(nnx.Module):
    def __init__(self, channels: int, *, groups: int, eps: float, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((channels,)))
        self.bias = nnx.Param(jnp.zeros((channels,)))
        self.groups, self.eps = groups, eps

    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *S C"]:
        h = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        h = h - h.mean((1, 3), keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean((1, 3), keepdims=True) + self.eps)
        scale, bias = (per_channel(part[...], x) for part in (self.scale, self.bias))
        return (h.reshape(x.shape) * scale + bias).astype(x.dtype)


class Embedding(nnx.Module):
    def __init__(self, rows: int, width: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, width)))

    def __call__(self, ids: Int[Array, "*S"]) -> Float[Array, "*S E"]:
        return self.embedding[...][ids]


class GEGLU(nnx.Module):
    """Linear to twice the width; value first, gate second; exact (erf) GELU on the gate."""

    def __init__(self, channels: int, width: int, *, rngs: nnx.Rngs):
        self.proj = Linear(channels, 2 * width, rngs=rngs)

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... F"]:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """GEGLU to four times the width and back (diffusers' `ff.net.0`, `ff.net.2`)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.geglu = GEGLU(channels, 4 * channels, rngs=rngs)
        self.out = Linear(4 * channels, channels, rngs=rngs)

    @jax.named_scope("feed_forward")
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        return self.out(self.geglu(x))


class ResnetBlock(nnx.Module):
    """Two of (GroupNorm, SiLU, 3x3 conv), plus a skip; `time_width` 0: no time input (the VAE)."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        time_width: int = 0,
        groups: int,
        eps: float,
        rngs: nnx.Rngs,
    ):
        self.norm1 = GroupNorm(fan_in, groups=groups, eps=eps, rngs=rngs)
        self.conv1 = Conv(fan_in, fan_out, rngs=rngs)
        self.time_emb_proj = Linear(time_width, fan_out, rngs=rngs) if time_width else None
        self.norm2 = GroupNorm(fan_out, groups=groups, eps=eps, rngs=rngs)
        self.conv2 = Conv(fan_out, fan_out, rngs=rngs)
        self.conv_shortcut = Linear(fan_in, fan_out, rngs=rngs) if fan_in != fan_out else None

    def __call__(
        self, x: Float[Array, "B H W I"], time: Float[Array, "#B O"] | None = None
    ) -> Float[Array, "B H W O"]:
        """`time` is this block's row of the time table (`UNet.time_table`), already projected."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if time is not None:
            h = h + time[:, None, None, :].astype(h.dtype)
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        with jax.named_scope("shortcut"):
            return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Upsample(nnx.Module):
    """Nearest-neighbor to `size` (by default twice the input), then a 3x3 convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, rngs=rngs)

    @jax.named_scope("upsample")
    def __call__(
        self, x: Float[Array, "B H W C"], size: tuple[int, int] | None = None
    ) -> Float[Array, "B H2 W2 C"]:
        for axis, length in zip((1, 2), size or (2 * x.shape[1], 2 * x.shape[2]), strict=True):
            # torch's nearest: output i reads input floor(i * in / out)
            x = jnp.take(x, np.arange(length) * x.shape[axis] // length, axis=axis)
        return self.conv(x)


class Downsample(nnx.Module):
    """3x3 convolution, stride 2: padded on both sides in the U-Net, right and bottom in the VAE."""

    def __init__(self, channels: int, *, padding: tuple[int, int], rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, stride=2, padding=(padding, padding), rngs=rngs)

    @jax.named_scope("downsample")
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        return self.conv(x)
