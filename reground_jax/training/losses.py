"""The losses of the three stages, each a function of (params, batch) alone.

A batch carries the position of every example in the whole run; all randomness is drawn from the
seed and that position. So an example meets the same noise on one device and on eight, and after a
resume. Latent diffusion: Rombach et al., arXiv 2112.10752; v: Salimans & Ho, arXiv 2202.00512;
min-SNR weights: Hang et al., arXiv 2303.09556; GLIGEN: arXiv 2301.07093.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int, UInt8

from reground_jax.config import ModelConfig, NoiseSchedule
from reground_jax.model import Params, network
from reground_jax.networks.attention import Attend
from reground_jax.networks.unet import Grounding
from reground_jax.sampling.schedule import alphas_cumprod
from reground_jax.settings import Wiring
from reground_jax.training.box_attention import Watch

Loss = Callable[..., tuple[Array, dict[str, Array]]]

# What the randomness of an example is for: the second fold_in constant, after its position.
TIMESTEP, NOISE, CAPTION_DROP, GROUNDING_DROP, POSTERIOR = range(5)


class ImageBatch(NamedTuple):
    images: UInt8[Array | np.ndarray, "B H W 3"]
    position: Int[Array | np.ndarray, "B"]  # of each example in the run


class LatentBatch(NamedTuple):
    latents: Float[Array | np.ndarray, "B h w C"]  # scaled: unit variance
    ids: Int[Array | np.ndarray, "B S"]  # of the captions
    null_ids: Int[Array | np.ndarray, "B S"]  # of the empty caption, the same in each row
    grounding: Grounding | None
    position: Int[Array | np.ndarray, "B"]


@dataclass(frozen=True)
class AutoencoderLoss:
    """L1 + `edge_weight` * multi-scale L1 of differences between neighbours + `kl_weight` * KL.

    The differences are what a blurred picture has too little of. There is no adversary.
    kl_weight counts per latent value, averaged over them.
    """

    config: ModelConfig
    attend: Attend
    dtype: str = "float32"
    seed: int = 0
    kl_weight: float = 1e-4
    edge_weight: float = 1.0
    scales: int = 3

    def __call__(self, params: Params, batch: ImageBatch) -> tuple[Array, dict[str, Array]]:
        vae = nnx.merge(network(self.config, "vae")[0], params["vae"])
        images = from_uint8(batch.images)
        mean, log_variance = vae.moments(images.astype(self.dtype), attend=self.attend)
        mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
        noise = normal(self.seed, batch.position, POSTERIOR, mean.shape[1:])
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        scale = vae.config.scaling_factor
        decoded = vae.decode((latents * scale).astype(self.dtype), attend=self.attend)

        error = decoded.astype(jnp.float32) - images
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean()
        l1, edges = jnp.abs(error).mean(), edge_loss(error, self.scales)
        loss = l1 + self.edge_weight * edges + self.kl_weight * kl
        psnr = 10 * jnp.log10(4 / jnp.square(error).mean())  # images span 2
        return loss, {"l1": l1, "edges": edges, "kl": kl, "psnr": psnr}


@dataclass(frozen=True)
class DiffusionLoss:
    """MSE of the U-Net's epsilon or v, by the model's own `NoiseSchedule`.

    Captions become empty with probability `caption_drop`, and all grounding slots null with
    `grounding_drop`, as GLIGEN does, so that classifier-free guidance has its other half.
    box_attention: weight of the loss on where fusers look (box_attention.py); 0 in GLIGEN's recipe.
    min_snr_gamma: weight min(SNR, gamma) / SNR of Hang et al. in terms of x0; None weighs all
    time steps alike.
    """

    config: ModelConfig
    attend: Attend
    wiring: Wiring
    dtype: str = "float32"
    seed: int = 0
    caption_drop: float = 0.1
    grounding_drop: float = 0.1
    box_attention: float = 0.0
    min_snr_gamma: float | None = None

    def __call__(self, params: Params, batch: LatentBatch) -> tuple[Array, dict[str, Array]]:
        schedule, position = self.config.schedule, batch.position
        timesteps = jax.vmap(lambda key: jax.random.randint(key, (), 0, schedule.num_train_steps))(
            keys(self.seed, position, TIMESTEP)
        )
        noise = normal(self.seed, position, NOISE, batch.latents.shape[1:])
        noisy, target, snr = forward_process(schedule, batch.latents, noise, timesteps)

        drop = chance(self.seed, position, CAPTION_DROP, self.caption_drop)
        ids = jnp.where(drop[:, None], batch.null_ids, batch.ids)
        text_encoder = nnx.merge(network(self.config, "text_encoder")[0], params["text_encoder"])
        text = text_encoder(ids, dtype=jnp.dtype(self.dtype)).hidden

        output, lack = self._unet(params["unet"], noisy, text, batch, timesteps)
        errors = jnp.square(output.astype(jnp.float32) - target).mean((1, 2, 3))
        weights = loss_weights(schedule, snr, self.min_snr_gamma)
        early = timesteps >= schedule.num_train_steps // 2  # mostly noise: layout is decided there
        metrics = {
            "mse": errors.mean(),
            "mse_early": (errors * early).sum() / jnp.maximum(early.sum(), 1),
        }
        loss = (weights * errors).mean()
        if lack is not None:
            metrics["box_attention"] = lack
            loss = loss + self.box_attention * lack
        return loss, metrics

    def _unet(
        self, params, noisy, text, batch: LatentBatch, timesteps
    ) -> tuple[Array, Array | None]:
        """The U-Net's output, and the loss of its fusers' attention if that is asked for."""
        unet = nnx.merge(network(self.config, "unet")[0], params)
        grounding, gate, watch = batch.grounding, None, None
        if grounding is not None:
            drop = chance(self.seed, batch.position, GROUNDING_DROP, self.grounding_drop)
            grounding = grounding._replace(mask=jnp.where(drop[:, None], 0.0, grounding.mask))
            gate = jnp.float32(1)
            if self.box_attention:
                watch = Watch(self.attend, grounding, *noisy.shape[1:3])
        # Not packed: folding the weights pays over the steps of a run, not within one.
        prepared = unet.prepare(
            text, grounding, timesteps.astype(jnp.float32), wiring=self.wiring, pack=False
        )
        output = unet(noisy, prepared, gate=gate, wiring=self.wiring, attend=watch or self.attend)
        return output, None if watch is None else watch.mean_loss()


def from_uint8(images: UInt8[ArrayLike, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """0..255 -> -1..1, float32: the inverse of `images.to_uint8`."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def edge_loss(error: Float[Array, "B H W C"], scales: int) -> Float[Array, ""]:
    """Mean |difference of neighbours| of an error image, at full size, a half, a quarter ..."""
    total = jnp.zeros(())
    for scale in range(scales):
        if scale:
            batch, height, width, channels = error.shape
            error = error.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        total += jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
    return total / scales


def forward_process(
    schedule: NoiseSchedule,
    latents: Float[ArrayLike, "B h w C"],
    noise: Float[Array, "B h w C"],
    timesteps: Int[Array, "B"],
) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"], Float[Array, "B"]]:
    """x_t, what the U-Net is to say of it (epsilon or v), and the signal-to-noise ratio."""
    kept = jnp.asarray(alphas_cumprod(schedule), jnp.float32)[timesteps]
    alpha, sigma = (jnp.sqrt(s)[:, None, None, None] for s in (kept, 1 - kept))
    latents = jnp.asarray(latents)
    noisy = alpha * latents + sigma * noise
    target = noise if schedule.prediction_type == "epsilon" else alpha * noise - sigma * latents
    return noisy, target, kept / (1 - kept)


def loss_weights(
    schedule: NoiseSchedule, snr: Float[Array, "B"], gamma: float | None
) -> Float[Array, "B"]:
    """min(SNR, gamma) on the error of x0, in terms of the error of epsilon or of v."""
    if gamma is None:
        return jnp.ones_like(snr)
    clipped = jnp.minimum(snr, gamma)
    return clipped / (snr if schedule.prediction_type == "epsilon" else snr + 1)


def keys(seed: int, position: Int[ArrayLike, "B"], use: int) -> Array:
    """A random key per example: a function of the run's seed, its position and the use."""
    base = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), use)
    return jax.vmap(lambda place: jax.random.fold_in(base, place))(jnp.asarray(position))


def normal(
    seed: int, position: Int[ArrayLike, "B"], use: int, shape: tuple[int, ...]
) -> Float[Array, "B ..."]:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys(seed, position, use))


def chance(
    seed: int, position: Int[ArrayLike, "B"], use: int, probability: float
) -> Bool[Array, "B"]:
    """bool [B], each true with `probability`."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys(seed, position, use))
