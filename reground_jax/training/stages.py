"""The training stages, each of which ends in a model directory.

Every stage starts from the previous stage's model and passes on all networks, so `Pipeline.load`
can read each result. Grounding follows GLIGEN (arXiv 2301.07093, section 3): the trained model is
frozen, fusers with zero gates and a position net are added, and only those are trained; for a map
also a down-sampler, and the weights of the first convolution, which is widened by its channels.
"""

import dataclasses
import functools
from typing import NamedTuple

from reground_jax.conditioning import Texts
from reground_jax.config import ModelConfig
from reground_jax.devices import place_whole
from reground_jax.networks.attention import attention_for
from reground_jax.networks.recompute import blockwise_attention
from reground_jax.networks.transformer import reads_grounding
from reground_jax.settings import Wiring, wiring_name
from reground_jax.training.batches import Boxes, Ground, ImageBatches, LatentBatches, labels
from reground_jax.training.config import StageConfig
from reground_jax.training.encoding import encoder, latent_deviation, phrase_encoder
from reground_jax.training.losses import (
    AutoencoderLoss,
    AutoencoderTerms,
    DiffusionLoss,
    Loss,
)
from reground_jax.training.opening import Stage, Terms, is_diffusion, trained
from reground_jax.training.previews import generations, reconstructions
from reground_jax.training.result import write_result
from reground_jax.training.state import Leaves, narrowed, nested, split_leaves
from reground_jax.training.trainer import Trainer


def autoencoder(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 1: trains the VAE on images alone, then measures the scale of its latents."""
    trainer = _autoencoder_trainer(stage)
    done = trainer.run(minutes=minutes)
    if done:
        scale = 1 / latent_deviation(stage, trainer.state.average)
        vae = dataclasses.replace(stage.model.vae, scaling_factor=round(scale, 5))
        write_result(stage, dataclasses.replace(stage.model, vae=vae), trainer)
    return done


def decoder(stage: Stage, *, minutes: float | None) -> bool:
    """Trains only the VAE's decoder: latents do not change, so it can follow any stage."""
    trainer = _autoencoder_trainer(stage)
    done = trainer.run(minutes=minutes)
    if done:
        write_result(stage, stage.model, trainer)
    return done


def text_to_image(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 2: trains the U-Net and text encoder together on captions; the VAE is frozen."""
    return _diffusion(stage, minutes=minutes)


def grounding(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 3: trains only what reads boxes or maps, on captions and those, under either wiring."""
    return _diffusion(stage, minutes=minutes)


STAGES = {
    "autoencoder": autoencoder,
    "text_to_image": text_to_image,
    "grounding": grounding,
    "decoder": decoder,
}


def _autoencoder_trainer(stage: Stage) -> Trainer:
    parts = _placed(stage)
    batches = ImageBatches(stage.data.source, stage.config.recipe.batch_size)
    return _trainer(stage, parts, batches, reconstructions(stage, parts.frozen))


def _diffusion(stage: Stage, *, minutes: float | None) -> bool:
    wiring = stage_wiring(stage.kind, stage.config)
    parts = _placed(stage)
    every = parts.frozen | parts.beside
    batches = _latent_batches(stage, every, grounded=reads_grounding(wiring))
    trainer = _trainer(stage, parts, batches, generations(stage, wiring, every))
    done = trainer.run(minutes=minutes)
    if done:
        write_result(stage, stage.model, trainer)
    return done


class Parts(NamedTuple):
    """The parameters of a stage, by what its step does with them."""

    trained: Leaves
    frozen: Leaves  # those that the step reads
    beside: Leaves  # frozen ones for what happens beside it: the autoencoder that makes latents


def parts_of(kind: str, config: StageConfig, leaves: Leaves) -> Parts:
    """`leaves`, which may be shapes under `jax.eval_shape`, as the stage holds them."""
    if not is_diffusion(kind):
        leaves = {name: leaf for name, leaf in leaves.items() if name.startswith("vae/")}
        return Parts(*split_leaves(leaves, trained(kind, config)), {})
    moving, frozen = split_leaves(leaves, trained(kind, config))
    beside = {name: leaf for name, leaf in frozen.items() if name.startswith("vae/")}
    used = {name: leaf for name, leaf in frozen.items() if name not in beside}
    return Parts(moving, narrowed(used, config.dtype), beside)


def stage_wiring(kind: str, config: StageConfig) -> Wiring:
    return wiring_name(config.wiring) if kind == "grounding" else "no_grounding"


def stage_loss(
    kind: str, config: StageConfig, terms: Terms, model: ModelConfig, platform: str
) -> Loss:
    """What the stage minimizes, as it computes it on `platform`."""
    # Without remat, "plain": differentiable on every platform, and the fastest at small sizes.
    remat = config.remat == "blocks"
    attend = blockwise_attention if remat else attention_for(platform, "plain")
    seed = config.recipe.seed
    if isinstance(terms, AutoencoderTerms):
        return AutoencoderLoss(model, attend, config.dtype, seed, terms, remat)
    wiring = stage_wiring(kind, config)
    return DiffusionLoss(model, attend, wiring, config.dtype, seed, terms, remat)


def _placed(stage: Stage) -> Parts:
    """Frozen leaves are placed on the devices once and shared by batches, steps and previews."""
    parts = parts_of(stage.kind, stage.config, stage.leaves)
    return parts._replace(
        frozen={n: place_whole(leaf, stage.devices) for n, leaf in parts.frozen.items()},
        beside={n: place_whole(leaf, stage.devices) for n, leaf in parts.beside.items()},
    )


def _latent_batches(stage: Stage, frozen: Leaves, *, grounded: bool) -> LatentBatches:
    params = nested(frozen)
    texts = Texts(stage.tokenizer_json, stage.model.text_encoder.tokenizer)
    ground: Ground | None = labels if stage.config.map is not None else None
    if grounded and ground is None:
        ground = Boxes(texts, functools.partial(phrase_encoder(stage), params["text_encoder"]))
    return LatentBatches(
        stage.data.source,
        stage.config.recipe.batch_size,
        texts,
        encode=functools.partial(encoder(stage), params["vae"]),  # type: ignore[arg-type]
        ground=ground,
        cache_examples=stage.config.cache_examples,
    )


def _trainer(stage: Stage, parts: Parts, make, on_sample) -> Trainer:
    platform = stage.devices[0].platform
    loss = stage_loss(stage.kind, stage.config, stage.terms, stage.model, platform)
    return Trainer(
        loss, stage.config.recipe, parts.trained, parts.frozen, make, stage.out, stage.devices,
        on_sample, stage.experiment, stage.accept_changes,
    )  # fmt: skip
