"""Verifies a conversion by running PyTorch's networks and ours on the same random inputs.

`references.py` loads PyTorch's networks with third-party code; here both sides are run and
compared. Needs torch, diffusers and transformers.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reground_jax.config import UNetConfig
from reground_jax.devices import compiler_options
from reground_jax.model import Model, network, read_model
from reground_jax.networks.attention import attention_for
from reground_jax.networks.clip_vision import FEATURE_NORM, image_features
from reground_jax.networks.grounding import Grounding, keypoint, maps, text, text_image
from reground_jax.settings import Wiring

from . import lora
from .embeddings import read_embedding
from .lora import Scale
from .reference_grounding import ARGUMENTS
from .references import add_embeddings, add_loras, import_libraries, reference_networks
from .rewire import rewire
from .sources import resolve

# Both sides are float32: rounding causes about 1e-6 (1e-5 at full size), a wrong epsilon 5e-5.
TOLERANCE = 1e-4


def verify(
    source: str | Path,
    destination: str | Path,
    *,
    adapter: str | Path | None = None,
    vae: str | Path | None = None,
    clip: str | Path | None = None,
    projection: str | Path | None = None,
    first_conv: str | Path | None = None,
    loras: Sequence[tuple[str | Path, Scale]] = (),
    embeddings: Sequence[str | Path] = (),
    variant: str | None = None,
) -> dict[str, float]:
    """The largest relative error, max |ours - theirs| / max |theirs|, of each network.

    destination: what `convert` wrote; the others: as passed to it. The networks run in float32 on 2
    small random samples: the U-Net with both wirings, and without fusers if it has a first
    convolution for that; the autoencoder in both directions; the text encoder's hidden states and
    pooled output; the image encoder, and on random embeddings its projection. If the result's dtype
    differs from the source's, the reference's weights are rounded to it. A good conversion stays
    below `TOLERANCE`. Raises ValueError if a package is missing or a file is invalid. Takes 14 GB
    of memory and about a minute for a float16 SD1.4.
    """
    libraries = import_libraries()
    found = resolve(source, variant)
    model = read_model(destination)
    theirs = reference_networks(
        found, model.config, libraries, adapter=adapter, vae=vae, clip=clip,
        projection=projection, first_conv=first_conv, variant=variant,
    )  # fmt: skip
    add_loras(theirs, lora.find(loras), model.config, libraries.torch)
    add_embeddings(theirs["text_encoder"], map(read_embedding, embeddings), libraries.torch)
    checks = {
        "text_encoder": _text_error,
        "unet": _unet_error,
        "vae": _vae_error,
        "image_encoder": _image_error,
        "image_project": _projection_error,
    }
    errors = {}
    with libraries.torch.inference_mode():
        for name in model.config.networks:
            reference = _rounded(theirs.pop(name), model.info.get("dtype"), libraries)
            errors[name] = checks[name](reference, model, libraries.torch)
    return errors


def _rounded(model: Any, dtype: str | None, libraries: SimpleNamespace) -> Any:
    """The model in float32, its weights rounded to the result's dtype unless that is mixed."""
    model = model.float().eval()
    if dtype in ("float16", "bfloat16"):
        for parameter in model.parameters():
            parameter.copy_(parameter.to(getattr(libraries.torch, dtype)))
    return model


def _run(model: Model, name: str, forward: Any, *args: Any) -> Any:
    """`forward(network, *args)` on the first device, as NumPy arrays."""
    program = _program(network(model.config, name)[0], forward)
    params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), model.params[name])
    with jax.default_matmul_precision("highest"):
        return jax.device_get(program(params, *args))


@functools.cache
def _program(graph: nnx.GraphDef, forward: Any) -> Any:
    options = compiler_options(jax.devices()[:1])
    if options:  # on CPU; for one small call, optimized code is not worth its compile time
        options = options | {"xla_backend_optimization_level": 0}

    def run(params: Any, *args: Any) -> Any:
        return forward(nnx.merge(graph, params), *args)

    return jax.jit(run, compiler_options=options)


def _attend() -> Any:
    return attention_for(jax.devices()[0].platform)


def _denoise(unet: Any, x: Any, text: Any, timesteps: Any, grounding: Grounding) -> dict[str, Any]:
    """The outputs by wiring; "no_grounding" if the U-Net has a first convolution for that."""
    tokens, appended = unet.tokens(grounding, dtype=text.dtype), None
    if unet.downsample_net is not None:
        appended = unet.downsample_net(grounding, x.shape[1:3], dtype=text.dtype)

    def forward(wiring: Wiring, gate: Any) -> Any:
        prepared = unet.prepare(text, tokens, timesteps, wiring=wiring, appended=appended)
        return unet(x, prepared, gate=gate, wiring=wiring, attend=_attend())

    outputs = {wiring: forward(wiring, jnp.float32(1)) for wiring in ("sequential", "parallel")}
    if unet.first_conv is not None:
        outputs["no_grounding"] = forward("parallel", None)
    return outputs


def _unet_error(theirs: Any, model: Model, torch: Any) -> float:
    config, random = model.config.unet, np.random.default_rng(0)
    side = 2 ** len(config.block_channels)  # 2 x 2 at the lowest level
    x = _normal(random, 2, side, side, config.in_channels)
    text = _normal(random, 2, model.config.text_encoder.tokenizer.max_length, config.text_width)
    timesteps, grounding = np.array([901.0, 42.0], np.float32), _random_grounding(config, random)
    names = ARGUMENTS.get(config.grounding or "text", {})
    given = {
        names.get(name, name): torch.from_numpy(array)
        for name, array in grounding._asdict().items()
    }
    plain = full = _nchw(x, torch)
    if config.map is not None:
        full = torch.cat([plain, theirs.downsample_net(given["map"], (side, side))], dim=1)

    def reference(x: Any) -> np.ndarray:
        inputs = x, torch.from_numpy(timesteps), torch.from_numpy(text)
        return _nhwc(theirs(*inputs, cross_attention_kwargs={"gligen": given}).sample)

    ours = _run(model, "unet", _denoise, x, text, timesteps, grounding)
    errors = [_relative_error(ours["sequential"], reference(full))]  # diffusers' own
    rewire(theirs, "parallel")
    errors.append(_relative_error(ours["parallel"], reference(full)))
    if config.first_conv:
        rewire(theirs, "no_grounding")
        theirs.conv_in = theirs.first_conv
        errors.append(_relative_error(ours["no_grounding"], reference(plain)))
    return _largest(errors)


def _random_grounding(config: UNetConfig, random: np.random.Generator) -> Grounding:
    """For 2 samples, with something absent in each kind."""

    def uniform(*shape: int) -> np.ndarray:
        return random.uniform(size=shape).astype(np.float32)

    if config.map is not None:  # sides that are no multiples of those it is resized to
        shape = 2, config.map.side * 3 // 2, config.map.side * 5 // 4
        shape = shape if config.map.classes else (*shape, 3)
        pixels = random.integers(0, config.map.classes or 256, shape, np.uint8)
        return maps.Grounding(pixels, np.array([1, 0], np.float32))
    if config.grounding == "keypoint":
        slots = config.persons * keypoint.JOINTS
        mask = (uniform(2, slots) < 0.5).astype(np.float32)
        return keypoint.Grounding(uniform(2, slots, 2), mask)
    mask = np.array([[1, 0, 0], [1, 1, 1]], np.float32)
    boxes, phrases = uniform(2, 3, 4), _normal(random, 2, 3, config.text_width)
    if config.grounding == "text":
        return text.Grounding(boxes, phrases, mask)
    images = _normal(random, 2, 3, config.text_width)
    phrase_weights = np.array([[1, 0, 0], [0, 1, 0.5]], np.float32)
    image_weights = np.array([[0.5, 0, 0], [1, 0, 1]], np.float32)
    return text_image.Grounding(boxes, mask, phrases, phrase_weights, images, image_weights)


def _both_ways(vae: Any, images: Any, latents: Any) -> Any:
    attend = _attend()
    return *vae.moments(images, attend=attend), vae.decode(latents, attend=attend)


def _vae_error(theirs: Any, model: Model, torch: Any) -> float:
    config, random = model.config.vae, np.random.default_rng(1)
    side = 4  # of the latents
    latents = _normal(random, 2, side, side, config.latent_channels)
    pixels = side * config.downsampling
    images = random.uniform(-1, 1, (2, pixels, pixels, config.image_channels)).astype(np.float32)
    ours = _run(model, "vae", _both_ways, images, latents)
    posterior = theirs.encode(_nchw(images, torch)).latent_dist
    decoded = theirs.decode(_nchw(latents, torch) / theirs.config.scaling_factor).sample
    pairs = zip(ours, (posterior.mean, posterior.logvar, decoded), strict=True)
    return _largest([_relative_error(a, _nhwc(b)) for a, b in pairs])


def _encode(encoder: Any, inputs: Any) -> Any:
    return encoder(inputs)


def _text_error(theirs: Any, model: Model, torch: Any) -> float:
    config, random = model.config.text_encoder, np.random.default_rng(2)
    tokens = config.tokenizer
    special = (tokens.bos_token_id, tokens.eos_token_id, tokens.pad_token_id)
    words = np.setdiff1d(np.arange(config.network.vocab_size), special)
    ids = np.full((2, tokens.max_length), tokens.pad_token_id, np.int32)
    for row, length in zip(ids, (tokens.max_length // 3, tokens.max_length), strict=True):
        row[0], row[length - 1] = tokens.bos_token_id, tokens.eos_token_id
        row[1 : length - 1] = random.choice(words, length - 2)
    ours = _run(model, "text_encoder", _encode, ids)
    out = theirs(torch.from_numpy(ids).long(), output_hidden_states=True)
    hidden = out.last_hidden_state
    if skip := config.network.clip_skip:
        norm = getattr(theirs, "text_model", theirs).final_layer_norm
        hidden = norm(out.hidden_states[-1 - skip])
    pairs = (ours.hidden, hidden), (ours.pooled, out.pooler_output)
    return _largest([_relative_error(a, b.numpy()) for a, b in pairs])


def _image_error(theirs: Any, model: Model, torch: Any) -> float:
    config, random = theirs.config, np.random.default_rng(3)
    images = _normal(random, 2, config.image_size, config.image_size, 3)
    ours = _run(model, "image_encoder", _encode, images)
    return _relative_error(ours, theirs(_nchw(images, torch)).image_embeds.numpy())


def _features(project: Any, embeds: Any) -> Any:
    return image_features(embeds, project.kernel[...])


def _projection_error(theirs: Any, model: Model, torch: Any) -> float:
    embeds = _normal(np.random.default_rng(4), 2, theirs.in_features)
    ours = _run(model, "image_project", _features, embeds)
    projected = theirs(torch.from_numpy(embeds))
    features = FEATURE_NORM * projected / projected.norm(dim=-1, keepdim=True)
    return _relative_error(ours, features.numpy())


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def _nchw(array: np.ndarray, torch: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _nhwc(tensor: Any) -> np.ndarray:
    return tensor.numpy().transpose(0, 2, 3, 1)


def _relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _largest(errors: list[float]) -> float:
    return float(np.max(errors))  # unlike `max`, propagates NaN
