"""Sample images during training, next to the originals, in OUT/samples/STEP.png."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from reground_jax.conditioning import Texts
from reground_jax.devices import WHOLE, over_devices
from reground_jax.generate import generate
from reground_jax.hardware import Hardware
from reground_jax.images import from_uint8, to_uint8
from reground_jax.layout import Layout
from reground_jax.model import Params, network
from reground_jax.networks.transformer import reads_grounding
from reground_jax.panel import background
from reground_jax.pictures import Picture
from reground_jax.programs import Programs
from reground_jax.request import Request
from reground_jax.settings import Settings, Wiring
from reground_jax.training.opening import Stage
from reground_jax.training.samples import sample_grid, save_grid
from reground_jax.training.state import Leaves, nested

LOOK = Settings(num_steps=20, guidance_scale=4.0, solver="dpmpp_2m")

Preview = Callable[[int, Leaves], None]  # (step, averaged parameters by flat name)


def reconstructions(stage: Stage, frozen: Leaves) -> Preview:
    """Previews the autoencoder's reconstructions of held-out images."""
    examples = stage.layouts()
    layouts = [example.layout for example in examples]
    images = np.stack([example.image for example in examples])
    reconstruct = _reconstruction(stage)

    def draw(step: int, average: Leaves) -> None:
        decoded = to_uint8(np.asarray(reconstruct(nested(average, frozen)["vae"], images)))
        save_grid(sample_grid(layouts, [images, decoded], boxes=False), _path(stage, step))

    return draw


def generations(stage: Stage, wiring: Wiring, frozen: Leaves) -> Preview:
    """Previews images generated from held-out layouts under `wiring`."""
    examples = stage.layouts()
    mapped = stage.model.unet.map is not None
    layouts = [by_map(example) if mapped else example.layout for example in examples]
    rows = [np.stack([example.image for example in examples])]
    if mapped:
        size = (rows[0].shape[2], rows[0].shape[1])
        rows.append(np.stack([np.asarray(background(one, size, "white")) for one in layouts]))
    generated = _generation(stage, layouts, wiring)

    def draw(step: int, average: Leaves) -> None:
        made = generated(nested(average, frozen))
        sheet = sample_grid(layouts, [*rows, made], boxes=reads_grounding(wiring))
        save_grid(sheet, _path(stage, step))

    return draw


def by_map(example: Any) -> Layout:
    """The example's caption, and its labels as the map."""
    return Layout(example.layout.prompt, map=Picture.of(example.labels))


def _path(stage: Stage, step: int) -> Path:
    return stage.out / "samples" / f"{step:07}.png"


def _reconstruction(stage: Stage) -> Callable[..., jax.Array]:
    graph, _ = network(stage.model, "vae")

    def reconstruct(params, images):
        vae = nnx.merge(graph, params)
        latents = vae.encode(from_uint8(images), attend=stage.attend())
        return vae.decode(latents, attend=stage.attend())

    return over_devices(reconstruct, (WHOLE, WHOLE), WHOLE, devices=stage.devices)


def _generation(
    stage: Stage, layouts: Sequence[Layout], wiring: Wiring
) -> Callable[[Params], UInt8[np.ndarray, "B S S 3"]]:
    """A function: parameters of all networks -> one image per layout."""
    programs = Programs(stage.model, Hardware.choose(stage.devices))
    texts = Texts(stage.tokenizer_json, stage.model.text_encoder.tokenizer)
    settings = dataclasses.replace(LOOK, wiring=wiring)
    request = Request.of("a preview", programs, layouts, settings, "numpy", {})

    def draw(params: Params) -> UInt8[np.ndarray, "B S S 3"]:
        (images,) = generate(programs, params, texts, request, [request.settings])
        return to_uint8(images, value_range="0..1")

    return draw
