"""The training stages, each of which ends in a model directory.

Every stage starts from the previous stage's model and passes on all networks, so `Pipeline.load`
can read each result. Grounding follows GLIGEN (arXiv 2301.07093, section 3): the trained model is
frozen, fusers with zero gates and a position net are added, and only those are trained.
"""

import dataclasses
import functools

from reground_jax.conditioning import Texts
from reground_jax.devices import place_whole
from reground_jax.networks.transformer import reads_grounding
from reground_jax.settings import Wiring, wiring_name
from reground_jax.training.batches import ImageBatches, LatentBatches
from reground_jax.training.encoding import encoder, latent_deviation, phrase_encoder
from reground_jax.training.losses import (
    AutoencoderLoss,
    AutoencoderTerms,
    DiffusionLoss,
    DiffusionTerms,
)
from reground_jax.training.opening import TRAINED, Stage
from reground_jax.training.previews import generations, reconstructions
from reground_jax.training.result import write_result
from reground_jax.training.state import Leaves, nested, split_leaves
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
    return _diffusion(stage, "no_grounding", minutes=minutes)


def grounding(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 3: trains only fusers and position net on captions and boxes, under either wiring."""
    return _diffusion(stage, wiring_name(stage.config.wiring), minutes=minutes)


STAGES = {
    "autoencoder": autoencoder,
    "text_to_image": text_to_image,
    "grounding": grounding,
    "decoder": decoder,
}


def _autoencoder_trainer(stage: Stage) -> Trainer:
    config = stage.config
    assert isinstance(stage.terms, AutoencoderTerms)
    loss = AutoencoderLoss(
        stage.model, stage.attend(), config.dtype, config.recipe.seed, stage.terms
    )
    trained, frozen = _split(stage, "vae/")
    batches = ImageBatches(stage.data.source, config.recipe.batch_size)
    return _trainer(stage, loss, trained, frozen, batches, reconstructions(stage, frozen))


def _diffusion(stage: Stage, wiring: Wiring, *, minutes: float | None) -> bool:
    config = stage.config
    assert isinstance(stage.terms, DiffusionTerms)
    loss = DiffusionLoss(
        stage.model, stage.attend(), wiring, config.dtype, config.recipe.seed, stage.terms
    )
    trained, frozen = _split(stage)
    batches = _latent_batches(stage, frozen, grounded=reads_grounding(wiring))
    used = {name: leaf for name, leaf in frozen.items() if not name.startswith("vae/")}
    trainer = _trainer(stage, loss, trained, used, batches, generations(stage, wiring, frozen))
    done = trainer.run(minutes=minutes)
    if done:
        write_result(stage, stage.model, trainer)
    return done


def _split(stage: Stage, prefix: str = "") -> tuple[Leaves, Leaves]:
    """(trained, frozen) leaves among those whose name starts with `prefix`.

    Frozen leaves are placed on the devices once and shared by batches, steps and previews.
    """
    leaves = {name: leaf for name, leaf in stage.leaves.items() if name.startswith(prefix)}
    trained, frozen = split_leaves(leaves, TRAINED[stage.kind])
    return trained, {name: place_whole(leaf, stage.devices) for name, leaf in frozen.items()}


def _latent_batches(stage: Stage, frozen: Leaves, *, grounded: bool) -> LatentBatches:
    params = nested(frozen)
    pooled = None
    if grounded:
        pooled = functools.partial(phrase_encoder(stage), params["text_encoder"])
    return LatentBatches(
        stage.data.source,
        stage.config.recipe.batch_size,
        Texts(stage.tokenizer_json, stage.model.text_encoder.tokenizer),
        encode=functools.partial(encoder(stage), params["vae"]),  # type: ignore[arg-type]
        pooled=pooled,
        cache_examples=stage.config.cache_examples,
    )


def _trainer(stage, loss, trained, frozen, make, on_sample) -> Trainer:
    return Trainer(
        loss, stage.config.recipe, trained, frozen, make, stage.out, stage.devices, on_sample,
        stage.experiment, stage.accept_changes,
    )  # fmt: skip
