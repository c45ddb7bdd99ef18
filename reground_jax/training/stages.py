"""The stages: autoencoder, text-to-image, grounding. Each ends in a model directory.

Every stage starts from the model of the one before and passes on all networks, so that
`Pipeline.load` reads each. GLIGEN's recipe (arXiv 2301.07093, section 3): the trained model is
frozen, fusers whose gates are zero and a position net are inserted, and only those are trained.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reground_jax.conditioning import Texts
from reground_jax.config import ModelConfig
from reground_jax.devices import SPLIT, WHOLE, over_devices, place_whole
from reground_jax.images import to_uint8
from reground_jax.model import Model, network, write_model
from reground_jax.pipeline import Pipeline
from reground_jax.training.batches import ImageBatches, LatentBatches
from reground_jax.training.losses import (
    AutoencoderLoss,
    AutoencoderTerms,
    DiffusionLoss,
    DiffusionTerms,
    from_uint8,
)
from reground_jax.training.opening import TRAINED, Stage
from reground_jax.training.samples import sample_grid, save_grid
from reground_jax.training.state import Leaves, nested, split_leaves
from reground_jax.training.trainer import Trainer


def autoencoder(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 1: the VAE, on images alone; then measures the scale of its latents."""
    trainer = _autoencoder_trainer(stage)
    done = trainer.run(minutes=minutes)
    if done:
        scale = 1 / latent_deviation(stage, trainer.state.average)
        vae = dataclasses.replace(stage.model.vae, scaling_factor=round(scale, 5))
        _write(stage, dataclasses.replace(stage.model, vae=vae), trainer)
    return done


def decoder(stage: Stage, *, minutes: float | None) -> bool:
    """The VAE's decoder alone: latents keep their meaning, so it may follow any stage."""
    trainer = _autoencoder_trainer(stage)
    done = trainer.run(minutes=minutes)
    if done:
        _write(stage, stage.model, trainer)
    return done


def text_to_image(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 2: U-Net and text encoder together, on captions; the VAE is frozen."""
    return _diffusion(stage, "no_grounding", minutes=minutes)


def grounding(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 3: only fusers and position net, on captions and boxes, under either wiring."""
    return _diffusion(stage, stage.config.wiring, minutes=minutes)


STAGES = {
    "autoencoder": autoencoder,
    "text_to_image": text_to_image,
    "grounding": grounding,
    "decoder": decoder,
}


def latent_deviation(stage: Stage, average: Leaves, batches: int = 8) -> float:
    """Standard deviation of unscaled mean latents about zero, over some training batches."""
    vae = nested(average)["vae"]
    encode = encoder(stage, scaled=False)
    size = stage.config.recipe.batch_size
    squares = []
    for index in range(batches):
        images = np.stack([e.image for e in stage.data.source.batch(index, size)])
        squares.append(float(jnp.square(encode(vae, images)).mean()))
    return float(np.sqrt(np.mean(squares)))


def encoder(stage: Stage, *, scaled: bool = True) -> Callable[..., jax.Array]:
    """Compiled (VAE parameters, uint8 images [B, S, S, 3]) -> float32 mean latents."""
    graph, _ = network(stage.model, "vae")
    factor = 1.0 if scaled else stage.model.vae.scaling_factor

    def encode(params, images):
        images = from_uint8(images).astype(stage.config.dtype)
        latents = nnx.merge(graph, params).encode(images, attend=stage.attend())
        return latents.astype(jnp.float32) / factor

    return over_devices(encode, (WHOLE, SPLIT), SPLIT, devices=stage.devices)


def _autoencoder_trainer(stage: Stage) -> Trainer:
    config = stage.config
    assert isinstance(stage.terms, AutoencoderTerms)
    loss = AutoencoderLoss(
        stage.model, stage.attend(), config.dtype, config.recipe.seed, stage.terms
    )
    leaves = {name: leaf for name, leaf in stage.leaves.items() if name.startswith("vae/")}
    trained, frozen = split_leaves(leaves, TRAINED[stage.kind])
    examples = stage.layouts()
    images = np.stack([example.image for example in examples])
    reconstruct = _reconstruction(stage)

    def on_sample(step: int, average: Leaves) -> None:
        decoded = to_uint8(np.asarray(reconstruct(nested(average, frozen)["vae"], images)))
        sheet = sample_grid([e.layout for e in examples], [images, decoded], boxes=False)
        save_grid(sheet, stage.out / "samples" / f"{step:07}.png")

    make = ImageBatches(stage.data.source, config.recipe.batch_size)
    return _trainer(stage, loss, trained, frozen, make, on_sample)


def _reconstruction(stage: Stage) -> Callable[..., jax.Array]:
    graph, _ = network(stage.model, "vae")

    def reconstruct(params, images):
        vae = nnx.merge(graph, params)
        latents = vae.encode(from_uint8(images), attend=stage.attend())
        return vae.decode(latents, attend=stage.attend())

    return over_devices(reconstruct, (WHOLE, WHOLE), WHOLE, devices=stage.devices)


def _diffusion(stage: Stage, wiring: Any, *, minutes: float | None) -> bool:
    config = stage.config
    assert isinstance(stage.terms, DiffusionTerms)
    loss = DiffusionLoss(
        stage.model, stage.attend(), wiring, config.dtype, config.recipe.seed, stage.terms
    )
    trained, frozen = split_leaves(stage.leaves, TRAINED[stage.kind])
    examples = stage.layouts()
    truth = np.stack([example.image for example in examples])
    layouts = [example.layout for example in examples]
    pipeline = Pipeline.from_model(
        Model(stage.model, nested(stage.leaves), stage.tokenizer_json, {}), devices=stage.devices
    )

    def on_sample(step: int, average: Leaves) -> None:
        pipeline.params.update(nested(average, frozen))
        images = pipeline(
            layouts, wiring=wiring, num_steps=20, guidance_scale=4.0, solver="dpmpp_2m",
            output="numpy",
        )  # fmt: skip
        made = to_uint8(images, value_range="0..1")
        sheet = sample_grid(layouts, [truth, made], boxes=wiring != "no_grounding")
        save_grid(sheet, stage.out / "samples" / f"{step:07}.png")

    # Placed once: each batch and each new phrase reads them.
    params = nested(
        {k: place_whole(v, stage.devices) for k, v in frozen.items() if not k.startswith("unet/")}
    )
    make = LatentBatches(
        stage.data.source,
        config.recipe.batch_size,
        Texts(stage.tokenizer_json, stage.model.text_encoder.tokenizer),
        encode=functools.partial(encoder(stage), params["vae"]),  # type: ignore[arg-type]
        pooled=_pooled(stage, params) if wiring != "no_grounding" else None,
        cache_examples=config.cache_examples,
    )
    used = {name: leaf for name, leaf in frozen.items() if not name.startswith("vae/")}
    trainer = _trainer(stage, loss, trained, used, make, on_sample)
    done = trainer.run(minutes=minutes)
    if done:
        _write(stage, stage.model, trainer, frozen)
    return done


def _pooled(stage: Stage, params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """int32 ids [1, S] -> float32 pooled embedding [E] of the frozen text encoder."""
    graph, _ = network(stage.model, "text_encoder")
    run = jax.jit(lambda params, ids: nnx.merge(graph, params)(ids).pooled[0])
    return lambda ids: np.asarray(run(params["text_encoder"], ids), np.float32)


def _trainer(stage, loss, trained, frozen, make, on_sample) -> Trainer:
    return Trainer(
        loss, stage.config.recipe, trained, frozen, make, stage.out, stage.devices, on_sample,
        stage.experiment, stage.accept_changes,
    )  # fmt: skip


def _write(
    stage: Stage, model: ModelConfig, trainer: Trainer, frozen: Leaves | None = None
) -> None:
    """The averaged weights, and everything else as it was, as OUT/model."""
    leaves = stage.leaves | (frozen or {}) | trainer.state.average
    kind = jnp.dtype(stage.config.save_dtype)
    record = {
        "stage": stage.kind,
        "steps": int(trainer.state.step),
        "recipe": dataclasses.asdict(stage.config.recipe),
        "wiring": stage.config.wiring if stage.kind == "grounding" else None,
        # Not the paths: they mean nothing elsewhere.
        "source": {k: v for k, v in stage.config.source.items() if k in ("kind", "world", "seed")},
        "finished": time.strftime("%Y-%m-%d"),
    }
    if trainer.changes:
        record["changes"] = trainer.changes
    info = {**stage.info, "training": [*stage.info["training"], record]}
    arrays = ((name, np.asarray(leaf).astype(kind)) for name, leaf in leaves.items())
    write_model(stage.out / "model", model, arrays, stage.tokenizer_json, info)
    print(f"wrote {stage.out / 'model'}")
