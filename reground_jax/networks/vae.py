"""AutoencoderKL: images to latents and back (arXiv 2112.10752; diffusers' names)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from reground_jax.config import VAEConfig
from reground_jax.networks.attention import Attend
from reground_jax.networks.layers import (
    Conv,
    Downsample,
    GroupNorm,
    Linear,
    ResnetBlock,
    Upsample,
)
from reground_jax.networks.recompute import recomputed

EPS = 1e-6  # for every norm in the autoencoder


class Attention(nnx.Module):
    """Single-head self-attention over all pixels; its projections are 1x1 convolutions."""

    def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
        self.group_norm = GroupNorm(channels, groups=groups, eps=EPS, rngs=rngs)
        self.to_qkv = Linear(channels, 3 * channels, rngs=rngs)
        self.to_out = Linear(channels, channels, rngs=rngs)

    @jax.named_scope("self_attention")
    def __call__(self, x: Float[Array, "B H W C"], *, attend: Attend) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        h = self.to_qkv(self.group_norm(x)).reshape(batch, height * width, 1, 3 * channels)
        h = attend(*jnp.split(h, 3, axis=-1))
        return x + self.to_out(h.reshape(x.shape))


class Level(nnx.Module):
    """Resnets at one resolution; in the middle block, an attention layer follows the first."""

    def __init__(
        self,
        fan_in: int,
        channels: int,
        *,
        layers: int,
        config: VAEConfig,
        rngs: nnx.Rngs,
        attention: bool = False,
        down: bool = False,
        up: bool = False,
    ):
        groups = config.norm_groups
        self.resnets = nnx.List(
            ResnetBlock(width, channels, groups=groups, eps=EPS, rngs=rngs)
            for width in [fan_in] + [channels] * (layers - 1)
        )
        self.attention = Attention(channels, groups=groups, rngs=rngs) if attention else None
        self.downsampler = Downsample(channels, padding=(0, 1), rngs=rngs) if down else None
        self.upsampler = Upsample(channels, rngs=rngs) if up else None

    def __call__(
        self, x: Float[Array, "B H W I"], *, attend: Attend, remat: bool = False
    ) -> Float[Array, "B H2 W2 O"]:
        for index, resnet in enumerate(self.resnets):
            with jax.named_scope(f"resnet_{index}"):
                x = recomputed(resnet.__call__, remat)(x)
            if index == 0 and self.attention is not None:
                x = self.attention(x, attend=attend)
        for resample in (self.downsampler, self.upsampler):
            x = x if resample is None else resample(x)
        return x


class Encoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        channels = config.block_channels
        self.conv_in = Conv(config.image_channels, channels[0], rngs=rngs)
        self.down_blocks = nnx.List(
            Level(
                channels[max(level - 1, 0)],
                width,
                layers=config.layers_per_block,
                down=level < len(channels) - 1,
                config=config,
                rngs=rngs,
            )
            for level, width in enumerate(channels)
        )
        self.mid_block = Level(
            channels[-1], channels[-1], layers=2, attention=True, config=config, rngs=rngs
        )
        self.conv_norm_out = GroupNorm(channels[-1], groups=config.norm_groups, eps=EPS, rngs=rngs)
        self.conv_out = Conv(channels[-1], 2 * config.latent_channels, rngs=rngs)

    @jax.named_scope("vae_encoder")
    def __call__(
        self, x: Float[Array, "B H W 3"], *, attend: Attend, remat: bool = False
    ) -> Float[Array, "B h w M"]:
        h = self.conv_in(x)
        for i, level in enumerate(self.down_blocks):
            with jax.named_scope(f"down_{i}"):
                h = level(h, attend=attend, remat=remat)
        with jax.named_scope("mid_0"):
            h = self.mid_block(h, attend=attend, remat=remat)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))


class Decoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        channels = config.block_channels[::-1]
        self.conv_in = Conv(config.latent_channels, channels[0], rngs=rngs)
        self.mid_block = Level(
            channels[0], channels[0], layers=2, attention=True, config=config, rngs=rngs
        )
        self.up_blocks = nnx.List(
            Level(
                channels[max(level - 1, 0)],
                width,
                layers=config.layers_per_block + 1,
                up=level < len(channels) - 1,
                config=config,
                rngs=rngs,
            )
            for level, width in enumerate(channels)
        )
        self.conv_norm_out = GroupNorm(channels[-1], groups=config.norm_groups, eps=EPS, rngs=rngs)
        self.conv_out = Conv(channels[-1], config.image_channels, rngs=rngs)

    @jax.named_scope("vae_decoder")
    def __call__(
        self, z: Float[Array, "B h w C"], *, attend: Attend, remat: bool = False
    ) -> Float[Array, "B H W 3"]:
        h = self.conv_in(z)
        with jax.named_scope("mid_0"):
            h = self.mid_block(h, attend=attend, remat=remat)
        for i, level in enumerate(self.up_blocks):
            with jax.named_scope(f"up_{i}"):
                h = level(h, attend=attend, remat=remat)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))


class AutoencoderKL(nnx.Module):
    """Scaled latents: `encode` and `decode` multiply and divide by `scaling_factor`."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        latent = config.latent_channels
        self.quant_conv = Linear(2 * latent, 2 * latent, rngs=rngs)
        self.post_quant_conv = Linear(latent, latent, rngs=rngs)

    def moments(
        self, images: Float[Array, "B H W 3"], *, attend: Attend, remat: bool = False
    ) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
        """Mean and log-variance of the posterior, unscaled. `images` in -1..1.

        remat: for training, compute what is inside resnets again in the backward pass.
        """
        h = self.quant_conv(self.encoder(images, attend=attend, remat=remat))
        mean, log_variance = jnp.split(h, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(self, images: Float[Array, "B H W 3"], *, attend: Attend) -> Float[Array, "B h w C"]:
        """Mean latents, scaled. `images` in -1..1, sides multiples of `config.downsampling`."""
        return self.moments(images, attend=attend)[0] * self.config.scaling_factor

    def decode(
        self, latents: Float[Array, "B h w C"], *, attend: Attend, remat: bool = False
    ) -> Float[Array, "B H W 3"]:
        """Images in about -1..1, not clipped. remat: as for `moments`."""
        z = self.post_quant_conv(latents / self.config.scaling_factor)
        return self.decoder(z, attend=attend, remat=remat)

    def encode_in_chunks(
        self, images: Float[Array, "B H W 3"], *, attend: Attend, pixels: int = 2**19
    ) -> Float[Array, "B h w C"]:
        """`encode`, about `pixels` pixels at a time, so memory use is independent of B."""
        return _in_chunks(lambda x: self.encode(x, attend=attend), images, pixels)

    def decode_in_chunks(
        self, latents: Float[Array, "B h w C"], *, attend: Attend, pixels: int = 2**19
    ) -> Float[Array, "B H W 3"]:
        """`decode`, about `pixels` pixels at a time, so memory use is independent of B."""
        cells = pixels // self.config.downsampling**2
        return _in_chunks(lambda z: self.decode(z, attend=attend), latents, cells)


def _in_chunks(
    run: Callable[[Array], Array], x: Float[Array, "B H W C"], cells: int
) -> Float[Array, "B H2 W2 C2"]:
    batch, height, width, _ = x.shape
    chunk = math.gcd(batch, max(1, cells // (height * width)))
    done = jax.lax.map(run, x.reshape(batch // chunk, chunk, *x.shape[1:]))
    return done.reshape(batch, *done.shape[2:])
