"""The losses of the stages, each a function of (params, batch) alone.

They run inside a step over devices, on one device's share of the batch, and are averaged over the
devices; anything that is not a mean over examples goes through `means.py`. A batch carries the
position of each example within the whole run, and all randomness derives from the seed and that
position, so an example gets the same noise on one device or eight, and after a resume. Latent
diffusion: Rombach et al., arXiv 2112.10752; v-prediction: Salimans & Ho, arXiv 2202.00512; min-SNR
weights: Hang et al., arXiv 2303.09556; GLIGEN: arXiv 2301.07093.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int, UInt8

from reground_jax.basics.fields import POSITIVE, at_least, between, check_number
from reground_jax.config import ModelConfig, NoiseSchedule
from reground_jax.images import from_uint8
from reground_jax.model import Params, network
from reground_jax.networks.attention import Attend
from reground_jax.networks.grounding import Grounding, maps, text
from reground_jax.networks.places import Place, places
from reground_jax.sampling.schedule import alphas_cumprod
from reground_jax.settings import Wiring
from reground_jax.training.box_attention import mean_box_attention_loss
from reground_jax.training.means import average, ratio

Loss = Callable[..., tuple[Array, dict[str, Array]]]

# Uses of an example's randomness: folded into the seed's key before the example's position.
TIMESTEP, NOISE, CAPTION_DROP, GROUNDING_DROP, POSTERIOR = range(5)


class ImageBatch(NamedTuple):
    images: UInt8[Array | np.ndarray, "B H W 3"]
    position: Int[Array | np.ndarray, "B"]  # of each example within the run


class LatentBatch(NamedTuple):
    latents: Float[Array | np.ndarray, "B h w C"]  # scaled: unit variance
    ids: Int[Array | np.ndarray, "B S"]  # of the captions
    null_ids: Int[Array | np.ndarray, "B S"]  # of the empty caption, the same in each row
    grounding: Grounding | None
    position: Int[Array | np.ndarray, "B"]


@no_type_check  # so that the tests' type checker does not preempt the errors below
@dataclass(frozen=True)
class AutoencoderTerms:
    """Weights of the autoencoder loss: "loss" in a config file.

    kl_weight applies to the mean KL per latent value. scales: how many scales the edge loss uses,
    each half the size of the one before.
    """

    kl_weight: float = 1e-4
    edge_weight: float = 1.0
    scales: int = 3

    def __post_init__(self) -> None:
        check_number("kl_weight", self.kl_weight, *at_least(0))
        check_number("edge_weight", self.edge_weight, *at_least(0))
        check_number("scales", self.scales, *between(1, 8), whole=True)


@no_type_check  # as above
@dataclass(frozen=True)
class DiffusionTerms:
    """Terms of the diffusion loss: "loss" in a config file.

    As in GLIGEN, a caption is replaced by the empty one with probability `caption_drop`, and all
    grounding tokens become null with `grounding_drop`, though a map is still appended; this trains
    the unconditional branch of classifier-free guidance. box_attention: weight of the loss on fuser
    attention (box_attention.py); 0 in GLIGEN's recipe. min_snr_gamma: weight the x0 error by
    min(SNR, gamma) (Hang et al.); None weights all timesteps equally.
    """

    caption_drop: float = 0.1
    grounding_drop: float = 0.1
    box_attention: float = 0.0
    min_snr_gamma: float | None = None

    def __post_init__(self) -> None:
        check_number("caption_drop", self.caption_drop, *between(0, 1))
        check_number("grounding_drop", self.grounding_drop, *between(0, 1))
        check_number("box_attention", self.box_attention, *at_least(0))
        if self.min_snr_gamma is not None:
            check_number("min_snr_gamma", self.min_snr_gamma, *POSITIVE)


@dataclass(frozen=True)
class AutoencoderLoss:
    """L1 + `edge_weight` * multi-scale L1 of differences between neighbors + `kl_weight` * KL.

    Blur shows up in these differences. There is no adversarial loss.
    """

    config: ModelConfig
    attend: Attend
    dtype: str = "float32"
    seed: int = 0
    terms: AutoencoderTerms = AutoencoderTerms()
    remat: bool = False  # recompute resnets in the backward pass

    def __call__(self, params: Params, batch: ImageBatch) -> tuple[Array, dict[str, Array]]:
        vae = nnx.merge(network(self.config, "vae")[0], params["vae"])
        images = from_uint8(batch.images)
        how = {"attend": self.attend, "remat": self.remat}
        mean, log_variance = vae.moments(images.astype(self.dtype), **how)
        mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
        noise = normal(self.seed, batch.position, POSTERIOR, mean.shape[1:])
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        scale = vae.config.scaling_factor
        decoded = vae.decode((latents * scale).astype(self.dtype), **how)

        error = decoded.astype(jnp.float32) - images
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean()
        l1, edges = jnp.abs(error).mean(), edge_loss(error, self.terms.scales)
        loss = l1 + self.terms.edge_weight * edges + self.terms.kl_weight * kl
        psnr = 10 * jnp.log10(4 / average(jnp.square(error).mean()))  # images span 2
        return loss, {"l1": l1, "edges": edges, "kl": kl, "psnr": psnr}


@dataclass(frozen=True)
class DiffusionLoss:
    """MSE of the U-Net's predicted epsilon or v, under the model's own `NoiseSchedule`."""

    config: ModelConfig
    attend: Attend
    wiring: Wiring
    dtype: str = "float32"
    seed: int = 0
    terms: DiffusionTerms = DiffusionTerms()
    remat: bool = False  # recompute blocks and resnets in the backward pass; not with box_attention

    def __call__(self, params: Params, batch: LatentBatch) -> tuple[Array, dict[str, Array]]:
        schedule, position = self.config.schedule, batch.position
        timesteps = jax.vmap(lambda key: jax.random.randint(key, (), 0, schedule.num_train_steps))(
            keys(self.seed, position, TIMESTEP)
        )
        noise = normal(self.seed, position, NOISE, batch.latents.shape[1:])
        noisy, target, snr = forward_process(schedule, batch.latents, noise, timesteps)

        drop = chance(self.seed, position, CAPTION_DROP, self.terms.caption_drop)
        ids = jnp.where(drop[:, None], batch.null_ids, batch.ids)
        text_encoder = nnx.merge(network(self.config, "text_encoder")[0], params["text_encoder"])
        states = text_encoder(ids, dtype=jnp.dtype(self.dtype)).hidden

        output, lack = self._unet(params["unet"], noisy, states, batch, timesteps)
        errors = jnp.square(output.astype(jnp.float32) - target).mean((1, 2, 3))
        weights = loss_weights(schedule, snr, self.terms.min_snr_gamma)
        early = timesteps >= schedule.num_train_steps // 2  # mostly noise: layout is decided here
        metrics = {
            "mse": errors.mean(),
            "mse_early": ratio((errors * early).sum(), early.sum()),
        }
        loss = (weights * errors).mean()
        if lack is not None:
            metrics["box_attention"] = lack
            loss = loss + self.terms.box_attention * lack
        return loss, metrics

    def _unet(
        self, params, noisy, states, batch: LatentBatch, timesteps
    ) -> tuple[Array, Array | None]:
        """The U-Net's output, and the box-attention loss if its weight is not zero."""
        unet = nnx.merge(network(self.config, "unet")[0], params)
        grounding, tokens, gate, watch = batch.grounding, None, None, frozenset[Place]()
        appended = None
        if grounding is not None:
            drop = chance(self.seed, batch.position, GROUNDING_DROP, self.terms.grounding_drop)
            drop = jnp.expand_dims(drop, range(1, np.ndim(grounding.mask)))
            grounding = grounding._replace(mask=jnp.where(drop, 0.0, grounding.mask))
            tokens, gate = unet.tokens(grounding, dtype=states.dtype), jnp.float32(1)
            if self.terms.box_attention:
                known = places(self.config.unet)
                watch = frozenset(place for place in known if place.attention == "fuser")
        if isinstance(grounding, maps.Grounding):
            appended = unet.downsample_net(grounding, noisy.shape[1:3], dtype=states.dtype)
        # Not packed: folding the weights pays off over many denoising steps, not for a single one.
        prepared = unet.prepare(
            states, tokens, timesteps.astype(jnp.float32), wiring=self.wiring, appended=appended,
            pack=False,
        )  # fmt: skip
        output, watched = unet.watched(
            noisy, prepared, watch, gate=gate, wiring=self.wiring, attend=self.attend,
            remat=self.remat,
        )  # fmt: skip
        if not watched:
            return output, None
        assert isinstance(grounding, text.Grounding)
        return output, mean_box_attention_loss(watched.values(), grounding, *noisy.shape[1:3])


def edge_loss(error: Float[Array, "B H W C"], scales: int) -> Float[Array, ""]:
    """Mean |difference of neighbors| of an error image, averaged over full, half, ... size."""
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
    """x_t, the U-Net's target (epsilon or v), and the signal-to-noise ratio."""
    kept = jnp.asarray(alphas_cumprod(schedule), jnp.float32)[timesteps]
    alpha, sigma = (jnp.sqrt(s)[:, None, None, None] for s in (kept, 1 - kept))
    latents = jnp.asarray(latents)
    noisy = alpha * latents + sigma * noise
    target = noise if schedule.prediction_type == "epsilon" else alpha * noise - sigma * latents
    return noisy, target, kept / (1 - kept)


def loss_weights(
    schedule: NoiseSchedule, snr: Float[Array, "B"], gamma: float | None
) -> Float[Array, "B"]:
    """The weight min(SNR, gamma) of the x0 error, converted to an error in epsilon or v."""
    if gamma is None:
        return jnp.ones_like(snr)
    clipped = jnp.minimum(snr, gamma)
    return clipped / (snr if schedule.prediction_type == "epsilon" else snr + 1)


def keys(seed: int, position: Int[ArrayLike, "B"], use: int) -> Array:
    """A random key per example: a function of the seed, the example's position and the use."""
    base = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), use)
    return jax.vmap(lambda place: jax.random.fold_in(base, place))(jnp.asarray(position))


def normal(
    seed: int, position: Int[ArrayLike, "B"], use: int, shape: tuple[int, ...]
) -> Float[Array, "B ..."]:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys(seed, position, use))


def chance(
    seed: int, position: Int[ArrayLike, "B"], use: int, probability: float
) -> Bool[Array, "B"]:
    """Booleans, each true with `probability`."""
    draw = functools.partial(jax.random.bernoulli, p=float(probability))
    return jax.vmap(draw)(keys(seed, position, use))
