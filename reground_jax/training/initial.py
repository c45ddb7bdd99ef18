"""A stage's initial parameters: those of the previous stage's model, and new ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from reground_jax.basics.fields import check_name, parse
from reground_jax.config import ModelConfig, TextEncoderConfig, UNetConfig
from reground_jax.model import Model, build, leaf_shapes
from reground_jax.storage.checkpoint import flatten
from reground_jax.storage.facts import GATES, is_grounding
from reground_jax.training.state import Leaves, nested

CONV_IN, FIRST_CONV = "unet/conv_in/", "unet/first_conv/"


def reads_map(name: str) -> bool:
    """What GLIGEN trains of a U-Net that reads a map: also the weights of the first convolution."""
    return is_grounding(name) or name == CONV_IN + "kernel"


def is_decoder(name: str) -> bool:
    return name.startswith(("vae/decoder/", "vae/post_quant_conv/"))


def fitting_fusers(
    given: Model, model: ModelConfig, place: Path, trained: Callable[[str], bool]
) -> Leaves:
    """The `trained` parameters of `given`. Raises ValueError unless they match those of `model`."""
    found = {name: leaf for name, leaf in flatten(given.params) if trained(name)}
    wanted = {name: shape for name, shape in leaf_shapes(model).items() if trained(name)}
    if {name: leaf.shape for name, leaf in found.items()} != wanted:
        raise ValueError(f"{place} has no fusers, or fusers that do not fit this U-Net")
    return found


def regrounded(leaves: Leaves, base: UNetConfig, unet: UNetConfig) -> Leaves:
    """The leaves of `base`, for a U-Net that may be grounded by another kind.

    If so, nothing that GLIGEN added to `base` remains. For a map the first convolution is widened,
    with zeros for its channels; as it was, it serves the steps without fusers.
    """
    if (base.grounding, base.map) == (unet.grounding, unet.map):
        return leaves
    own = FIRST_CONV if base.first_conv else CONV_IN
    first = {part: leaves[own + part] for part in ("kernel", "bias")}
    kept = {k: v for k, v in leaves.items() if not is_grounding(k) and FIRST_CONV not in k}
    kept |= {CONV_IN + part: leaf for part, leaf in first.items()}
    if unet.map is not None:
        wider = ((0, 0), (0, 0), (0, unet.map.channels), (0, 0))
        kept[CONV_IN + "kernel"] = np.pad(np.asarray(first["kernel"], np.float32), wider)
        kept |= {FIRST_CONV + part: leaf for part, leaf in first.items()}
    return kept


def changed(model: ModelConfig, parts: dict[str, Any]) -> ModelConfig:
    """`model` with some fields of some parts replaced, as a config file specifies."""
    given = model.parts()
    for name, fields in parts.items():
        check_name("model part", name, given)
        part = given[name]
        if isinstance(fields, dict):  # otherwise `parse` raises the error
            fields = dataclasses.asdict(part) | fields
        given[name] = parse(type(part), fields, f"model.{name}")
    text = TextEncoderConfig(given.pop("text_encoder"), given.pop("tokenizer"))
    return ModelConfig(**given, text_encoders=(text,))


def check_kept(model: ModelConfig, leaves: Leaves, may_be_new: Callable[[str], bool]) -> None:
    """Raises ValueError if `completed` would randomly initialize a parameter that is not trained.

    may_be_new: predicate on flat names, true for parameters that the stage trains.
    """
    shapes = leaf_shapes(model)
    for name in model.networks:
        wanted = {k: shape for k, shape in shapes.items() if k.startswith(f"{name}/")}
        lost = _lost(wanted, leaves)
        if lost and not all(map(may_be_new, wanted)):
            raise ValueError(
                f"this stage does not train all of the {name}, and the one in --from does not fit "
                f"({lost[0]} is missing or has another shape): remove model.{name} from the "
                "config, or start from a model that matches it"
            )


def completed(
    model: ModelConfig, leaves: Leaves, *, seed: int, fuser_start: str = "gates"
) -> Leaves:
    """All parameters of `model`: those of `leaves` where name and shape match, new ones otherwise.

    A network with parameters missing from `leaves` is initialized from scratch, unless only
    GLIGEN's additions are missing.
    """
    result: Leaves = {}
    for name in model.networks:
        fresh = dict(flatten({name: initialized(model, name, seed)}))
        if fuser_start == "outputs":
            fresh = {k: opened(k, v) for k, v in fresh.items()}
        if not _lost({k: v.shape for k, v in fresh.items()}, leaves):
            kept = (k for k in fresh if k in leaves and leaves[k].shape == fresh[k].shape)
            fresh |= {k: np.asarray(leaves[k], np.float32) for k in kept}
        result |= fresh
    return result


def _lost(shapes: dict[str, tuple[int, ...]], leaves: Leaves) -> list[str]:
    """Names of a network's parameters that `leaves` lacks, apart from GLIGEN's additions."""
    return [
        name
        for name, shape in shapes.items()
        if not is_grounding(name) and (name not in leaves or leaves[name].shape != shape)
    ]


def opened(name: str, leaf: Any) -> Any:
    """Sets gates to one and output layers to zero, as ControlNet initializes its branches.

    The gradient of a fuser's weights scales with its gate, which starts at zero and drifts around
    it, changing sign, for a long time. Zero outputs avoid that and leave the model's output
    unchanged as well.
    """
    if name.endswith(GATES):
        return jnp.ones_like(leaf)
    outputs = ("attn/to_out/kernel", "attn/to_out/bias", "ff/out/kernel", "ff/out/bias")
    return jnp.zeros_like(leaf) if "/fuser/" in name and name.endswith(outputs) else leaf


def initialized(model: ModelConfig, name: str, seed: int) -> dict[Any, Any]:
    """New float32 parameters of one network; residual branches of the U-Net start at zero."""
    params = nnx.to_pure_dict(nnx.state(build(model, name, nnx.Rngs(seed))))
    if name != "unet":
        return params
    zero = ("conv2/kernel", "conv2/bias", "/proj_out/kernel", "conv_out/kernel", "conv_out/bias")
    return nested({k: jnp.zeros_like(v) if k.endswith(zero) else v for k, v in flatten(params)})
