"""The stages: autoencoder, text-to-image, grounding. Each ends in a model directory.

Every stage starts from the model of the one before and passes on all networks, so that
`Pipeline.load` reads each. GLIGEN's recipe (arXiv 2301.07093, section 3): the trained model is
frozen, fusers whose gates are zero and a position net are inserted, and only those are trained.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reground_jax.checkpoint import flatten
from reground_jax.conditioning import Texts
from reground_jax.config import ModelConfig, from_json
from reground_jax.devices import SPLIT, WHOLE, Device, over_devices
from reground_jax.images import to_uint8
from reground_jax.model import NETWORKS, Model, leaf_shapes, network, read_model, write_model
from reground_jax.networks.attention import attention_for
from reground_jax.networks.clip import CLIPTextModel
from reground_jax.networks.unet import UNet
from reground_jax.networks.vae import AutoencoderKL
from reground_jax.pipeline import Pipeline
from reground_jax.training.batches import ImageBatches, LatentBatches
from reground_jax.training.config import Data, StageConfig, open_data
from reground_jax.training.losses import AutoencoderLoss, DiffusionLoss, from_uint8
from reground_jax.training.samples import sample_grid, save_grid
from reground_jax.training.state import Leaves, nested, split_leaves
from reground_jax.training.trainer import GATES, Trainer


@dataclass(frozen=True)
class Stage:
    """What one command works with."""

    kind: str  # one of STAGES
    config: StageConfig
    data: Data
    model: ModelConfig
    leaves: Leaves  # of all networks, by flat name
    tokenizer_json: str
    out: Path
    devices: tuple[Device, ...]
    info: dict[str, Any]

    def attend(self) -> Callable[..., Any]:
        # The plain form has a gradient everywhere, and is the fastest at the sizes of training.
        return attention_for(self.devices[0].platform, "plain")

    def layouts(self) -> list[Any]:
        return list(self.data.heldout(self.config.num_samples))


def autoencoder(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 1: the VAE, on images alone; then measures the scale of its latents."""
    trainer = _autoencoder_trainer(stage, lambda name: name.startswith("vae/"))
    done = trainer.run(minutes=minutes)
    if done:
        scale = 1 / latent_deviation(stage, trainer.state.average)
        vae = dataclasses.replace(stage.model.vae, scaling_factor=round(scale, 5))
        _write(stage, dataclasses.replace(stage.model, vae=vae), trainer)
    return done


def decoder(stage: Stage, *, minutes: float | None) -> bool:
    """The VAE's decoder alone: latents keep their meaning, so it may follow any stage."""
    trainer = _autoencoder_trainer(stage, is_decoder)
    done = trainer.run(minutes=minutes)
    if done:
        _write(stage, stage.model, trainer)
    return done


def text_to_image(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 2: U-Net and text encoder together, on captions; the VAE is frozen."""
    return _diffusion(
        stage, "no_grounding", lambda name: not name.startswith("vae/"), minutes=minutes
    )


def grounding(stage: Stage, *, minutes: float | None) -> bool:
    """Stage 3: only fusers and position net, on captions and boxes, under either wiring."""
    return _diffusion(stage, stage.config.wiring, is_grounding, minutes=minutes)


STAGES = {
    "autoencoder": autoencoder,
    "text_to_image": text_to_image,
    "grounding": grounding,
    "decoder": decoder,
}


def is_decoder(name: str) -> bool:
    return name.startswith(("vae/decoder/", "vae/post_quant_conv/"))


def is_grounding(name: str) -> bool:
    """Whether a parameter is what GLIGEN adds to Stable Diffusion."""
    return "/fuser/" in name or name.startswith("unet/position_net/")


def open_stage(
    kind: str,
    config: StageConfig,
    out: Path,
    *,
    base: Path | None,
    fusers: Path | None = None,
    devices: Sequence[Device] | None = None,
) -> Stage:
    """Everything that a stage starts with. Raises ValueError for whatever does not fit.

    base: the model directory of the stage before; None starts from nothing (stage 1). fusers: a
    grounded model directory whose fusers and position net the stage "grounding" goes on with.
    """
    data = open_data(config)
    chosen = tuple(devices or jax.devices())
    if base is None:
        if data.tokenizer is None:
            raise ValueError(
                "this source has no tokenizer of its own: give --from DIR, a model to start from "
                "(`reground-jax convert` makes one of any Stable Diffusion checkpoint)"
            )
        tokenizer_json, tokenizer = data.tokenizer
        model, leaves = ModelConfig(tokenizer=tokenizer), {}
        info = {"source": "trained by reground_jax.training", "training": []}
    else:
        given = read_model(base)
        model, tokenizer_json = given.config, given.tokenizer_json
        leaves = dict(flatten(given.params))
        info = {"source": given.info.get("source"), "training": given.info.get("training", [])}
    model = changed(model, config.model)
    if kind in ("text_to_image", "grounding"):
        unet = dataclasses.replace(model.unet, grounded=kind == "grounding")
        model = dataclasses.replace(model, unet=unet)
    if fusers is not None:
        if kind != "grounding":
            raise ValueError(f"--fusers is for the stage grounding, not for {kind}")
        given = read_model(fusers)
        leaves |= fitting_fusers(given, model, fusers)
        earlier = [r for r in given.info.get("training", []) if r.get("stage") == "grounding"]
        info["training"] = [*info["training"], *earlier]
    leaves = completed(model, leaves, seed=config.recipe.seed, fuser_start=config.fuser_start)
    return Stage(kind, config, data, model, leaves, tokenizer_json, out, chosen, info)


def fitting_fusers(given: Model, model: ModelConfig, place: Path) -> Leaves:
    """What GLIGEN adds, of the model `given`. Raises ValueError unless it is all that fits."""
    found = {name: leaf for name, leaf in flatten(given.params) if is_grounding(name)}
    wanted = {name: shape for name, shape in leaf_shapes(model).items() if is_grounding(name)}
    if {name: leaf.shape for name, leaf in found.items()} != wanted:
        raise ValueError(f"{place} has no fusers, or fusers of another size than this U-Net")
    return found


def changed(model: ModelConfig, parts: dict[str, dict[str, Any]]) -> ModelConfig:
    """`model` with some fields of some parts replaced, as a config file says it."""
    for name, fields in parts.items():
        if name not in model.to_json():
            raise ValueError(f"model has no part {name!r}: {', '.join(model.to_json())}")
        part = getattr(model, name)
        value = from_json(type(part), dataclasses.asdict(part) | fields)
        model = dataclasses.replace(model, **{name: value})
    return model


def completed(
    model: ModelConfig, leaves: Leaves, *, seed: int, fuser_start: str = "gates"
) -> Leaves:
    """All parameters of `model`: those of `leaves` where name and shape agree, else fresh ones.

    A network that would keep only a part of its own is made anew as a whole, unless what is
    missing is just GLIGEN's addition.
    """
    result: Leaves = {}
    for name in NETWORKS:
        fresh = dict(flatten({name: initialised(model, name, seed)}))
        if fuser_start == "outputs":
            fresh = {k: opened(k, v) for k, v in fresh.items()}
        kept = {k: leaves[k] for k in fresh if k in leaves and leaves[k].shape == fresh[k].shape}
        if all(is_grounding(k) for k in set(fresh) - set(kept)):
            fresh |= {k: np.asarray(v, np.float32) for k, v in kept.items()}
        result |= fresh
    return result


def opened(name: str, leaf: Any) -> Any:
    """A fuser's leaf with open gates and zero outputs, as ControlNet starts its branches.

    Behind a zero gate a fuser's weights get gradients of the gate's sign, which wanders about zero
    for a long time; behind a zero output they get none of it, and the model is the same.
    """
    if name.endswith(GATES):
        return jnp.ones_like(leaf)
    outputs = ("attn/to_out/kernel", "attn/to_out/bias", "ff/out/kernel", "ff/out/bias")
    return jnp.zeros_like(leaf) if "/fuser/" in name and name.endswith(outputs) else leaf


def initialised(model: ModelConfig, name: str, seed: int) -> dict[Any, Any]:
    """Fresh float32 parameters of one network; residual branches of the U-Net start at zero."""
    build: Callable[[nnx.Rngs], nnx.Module] = {
        "text_encoder": lambda rngs: CLIPTextModel(model.text_encoder, rngs=rngs),
        "unet": lambda rngs: UNet(model.unet, rngs=rngs),
        "vae": lambda rngs: AutoencoderKL(model.vae, rngs=rngs),
    }[name]
    params = nnx.to_pure_dict(nnx.state(build(nnx.Rngs(seed))))
    if name != "unet":
        return params
    zero = ("conv2/kernel", "conv2/bias", "/proj_out/kernel", "conv_out/kernel", "conv_out/bias")
    return nested({k: jnp.zeros_like(v) if k.endswith(zero) else v for k, v in flatten(params)})


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


def _autoencoder_trainer(stage: Stage, trainable: Callable[[str], bool]) -> Trainer:
    config = stage.config
    loss = AutoencoderLoss(
        stage.model, stage.attend(), config.dtype, config.recipe.seed, **config.loss
    )
    leaves = {name: leaf for name, leaf in stage.leaves.items() if name.startswith("vae/")}
    trained, frozen = split_leaves(leaves, trainable)
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


def _diffusion(
    stage: Stage, wiring: Any, trainable: Callable[[str], bool], *, minutes: float | None
) -> bool:
    config = stage.config
    loss = DiffusionLoss(
        stage.model, stage.attend(), wiring, config.dtype, config.recipe.seed, **config.loss
    )
    trained, frozen = split_leaves(stage.leaves, trainable)
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

    params = nested(frozen)
    make = LatentBatches(
        stage.data.source,
        config.recipe.batch_size,
        Texts(stage.tokenizer_json, stage.model.tokenizer),
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
        loss, stage.config.recipe, trained, frozen, make, stage.out, stage.devices, on_sample
    )


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
    info = {**stage.info, "training": [*stage.info["training"], record]}
    arrays = ((name, np.asarray(leaf).astype(kind)) for name, leaf in leaves.items())
    write_model(stage.out / "model", model, arrays, stage.tokenizer_json, info)
    print(f"wrote {stage.out / 'model'}")
