"""Translates the grounding of an original GLIGEN checkpoint: its kind, and how it is read.

The classes that the config names are those of `ldm/modules/diffusionmodules/`. Their parameters
say little about a map's networks, so widths and depths come from the shapes of the arrays.
"""

import re
from collections.abc import Mapping
from typing import Any

from reground_jax.config import MapConfig
from reground_jax.kinds import KINDS, MAP_KINDS, GroundingKind

from .config_fields import WIDTH
from .rules import Rule, UnsupportedConfig, check_fields, one_of, refused, shown, whole
from .sources import TensorFile

POSITION_NET = "_grounding_net.PositionNet"
DOWNSAMPLER = "_grounding_downsampler.GroundingDownsampler"
BACKBONE = "position_net.convnext_tiny_backbone"
SIDE, CLASSES = whole(32, 8192), whole(2, 256)
# The defaults of the classes.
POSITION_SIDE, DOWNSAMPLER_SIDE, DEFAULT_CLASSES = 448, 256, 152
HED_SIDE = 64  # of the latents, to which hed's down-sampler always resizes


def grounding_fields(params: Mapping[str, Any], arrays: TensorFile) -> dict[str, Any]:
    """The fields of UNetConfig about grounding, from the params of the original U-Net.

    Raises UnsupportedConfig for another kind than GLIGEN's eight, and for parameters that its
    checkpoints do not have.
    """
    kind, given = _class(params, "grounding_tokenizer", POSITION_NET)
    width = params["context_dim"]
    rules = {"out_dim": one_of(width)}
    if kind in ("text", "text_image"):
        rules |= {"in_dim": one_of(width), "fourier_freqs": one_of(8)}
    elif kind == "keypoint":
        rules |= {"max_persons_per_image": whole(1, 2**10), "fourier_freqs": one_of(8)}
    else:
        rules |= {"resize_input": SIDE} | ({"in_dim": CLASSES} if kind == "sem" else {})
    own = _checked(f"original position net config ({kind})", given, rules)
    fields: dict[str, Any] = {"grounding": kind}
    if kind == "keypoint":
        fields["persons"] = own["max_persons_per_image"]
    if kind in MAP_KINDS:
        classes = own.get("in_dim", DEFAULT_CLASSES) if kind == "sem" else None
        _check_downsampler(kind, params, classes)
        side = own.get("resize_input", POSITION_SIDE)
        fields["map"] = map_config(arrays.shapes(), side, classes)
    elif params.get("grounding_downsampler") is not None:
        found = params["grounding_downsampler"]
        raise refused("original U-Net config", "grounding_downsampler", found, f"none with {kind}")
    return fields


def _class(params: Mapping[str, Any], field: str, ending: str) -> tuple[GroundingKind, Any]:
    """The kind that a class's name begins with, and the parameters of the class.

    Such as "ldm.modules.diffusionmodules.canny_grounding_net.PositionNet".
    """
    part = params.get(field)
    part = part if isinstance(part, Mapping) else {}
    target = part.get("target")
    name = ".".join(str(target).split(".")[-2:])
    for kind in KINDS:
        if name == kind + ending:
            return kind, part.get("params")
    raise UnsupportedConfig(
        f"original U-Net config: {field} is {shown(target)}, expected KIND{ending} with a KIND "
        f"of {', '.join(KINDS)}; use one of GLIGEN's ten checkpoints"
    )


def _checked(where: str, given: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise UnsupportedConfig(f"{where} is {shown(given)}, expected named parameters")
    return check_fields(where, given or {}, rules, {}, ())


def _check_downsampler(kind: GroundingKind, params: Mapping[str, Any], classes: int | None) -> None:
    """A down-sampler must end at the size of the latents."""
    where = f"original down-sampler config ({kind})"
    found, given = _class(params, "grounding_downsampler", DOWNSAMPLER)
    if found != kind:
        raise refused(where, "its kind", found, f"that of the position net, {kind}")
    rules = {"out_dim": WIDTH, "resize_input": SIDE}
    rules |= {"in_dim": one_of(classes)} if classes is not None else {}
    own = _checked(where, given, rules)
    latent, side = params["image_size"], own.get("resize_input", DOWNSAMPLER_SIDE)
    if kind == "hed" and latent != HED_SIDE:
        raise refused(where, "image_size", latent, f"{HED_SIDE}")
    if kind != "hed" and side != 4 * latent:
        raise refused(where, "resize_input", side, f"4 times image_size ({latent})")


def map_config(shapes: Mapping[str, tuple[int, ...]], side: int, classes: int | None) -> MapConfig:
    """How a map is read, from the shapes of the original U-Net's arrays.

    side: at which the position net reads it. classes: of a semantic map. Arrays that are missing
    or do not fit show when they are matched.
    """
    gamma = re.compile(rf"{re.escape(BACKBONE)}\.stages\.(\d+)\.(\d+)\.gamma")
    blocks: dict[int, int] = {}
    widths: dict[int, int] = {}
    for name, shape in shapes.items():
        if found := gamma.fullmatch(name):
            stage = int(found[1])
            blocks[stage], widths[stage] = blocks.get(stage, 0) + 1, shape[0]
    stages = range(len(blocks))
    if not blocks or sorted(blocks) != list(stages):
        raise UnsupportedConfig(f"the checkpoint has no ConvNeXt under {BACKBONE}")
    weights = (f"downsample_net.layers.{layer}.weight" for layer in (0, 2))
    try:
        return MapConfig(
            side=side,
            depths=tuple(blocks[stage] for stage in stages),
            widths=tuple(widths[stage] for stage in stages),
            downsampler=tuple(shapes[name][0] for name in weights if name in shapes),
            classes=classes,
        )
    except ValueError as error:
        raise UnsupportedConfig(
            f"the checkpoint's map networks are not GLIGEN's: {error}"
        ) from error
