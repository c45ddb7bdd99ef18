"""`Request`: the arguments of a pipeline call, all checked before any work."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

import jax
import numpy as np
from jaxtyping import Array, Float, UInt32

from reground_jax.basics.fields import check_name
from reground_jax.basics.wording import shown
from reground_jax.config import ModelConfig
from reground_jax.hints import refuse_keywords
from reground_jax.kinds import BOXED
from reground_jax.layout import Layout, check_max_boxes
from reground_jax.layout_kinds import check_kind, check_max_persons, check_pictures
from reground_jax.networks.transformer import reads_grounding
from reground_jax.programs import Programs, check_grounded
from reground_jax.sampling.coupling import amount_table
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.sampling.solvers import SOLVERS
from reground_jax.settings import Settings, checked_seeds

Output = Literal["pil", "numpy", "latents"]
OUTPUTS: tuple[Output, ...] = ("pil", "numpy", "latents")
DEFAULT_BATCH = 8  # maximum number of images per device if batch_size is not given

Latents = Float[np.ndarray | Array, "B h w C"]
Progress = Callable[[int, int, int], None]  # (batch, number of batches, steps done in it)


class SettingsFields(TypedDict, total=False):
    """The fields of `Settings` as keywords, except dtype, which is the pipeline's."""

    wiring: str
    coupling: Any
    grounding_weight: Any
    text_weight: Any
    attention_guidance: Any
    gamma: float | Sequence[float]
    num_steps: int
    guidance_scale: float
    guidance_interval: Sequence[float]
    solver: str
    eta: float
    height: int | None
    width: int | None
    max_boxes: int
    paste: bool


class CallFields(SettingsFields, total=False):
    """What a call takes besides layouts, settings and output; see `Pipeline.__call__`."""

    seeds: Sequence[int] | np.ndarray | jax.Array | int | None
    latents: Latents | None
    batch_size: int | None
    progress: Progress | bool | None


SETTINGS_FIELDS = tuple(SettingsFields.__annotations__)
CALL_FIELDS = (*SETTINGS_FIELDS, "seeds", "latents", "output", "batch_size", "progress")


@dataclass(frozen=True, eq=False)
class Request:
    """A call's arguments, checked. The settings' dtype is the pipeline's."""

    layouts: list[Layout]
    settings: Settings
    seeds: UInt32[np.ndarray, "B"]
    latents: Latents | None
    output: Output
    batch_size: int  # images per device at a time
    progress: Progress | bool | None

    @classmethod
    def of(
        cls,
        function: str,
        programs: Programs,
        layouts: Any,
        settings: Settings,
        output: str,
        keywords: CallFields,
    ) -> "Request":
        """Raises ValueError for what the model does not support, TypeError for unknown keywords.

        function: the caller's name in messages. settings: those before the keywords are applied.
        """
        refuse_keywords(function, keywords, CALL_FIELDS)
        given = check_layouts(layouts)
        check_name("output", output, OUTPUTS)
        fields: Any = {name: v for name, v in keywords.items() if name in SETTINGS_FIELDS}
        chosen = choose_settings(settings, programs.hardware.dtype, **fields)
        seeds = choose_seeds(keywords.get("seeds"), len(given))
        check_model(programs.config, chosen)
        latents, batch_size = keywords.get("latents"), keywords.get("batch_size")
        check_latents(latents, (len(given), *programs.latent_shape(chosen)))
        for layout in given:
            check_whole(programs.config, layout, chosen.max_boxes)
        return cls(
            given, chosen, seeds, latents, cast(Output, output),
            check_batch_size(batch_size, -(-len(given) // len(programs.hardware.devices))),
            keywords.get("progress"),
        )  # fmt: skip


def choose_settings(settings: Any, dtype: str, **fields: Any) -> Settings:
    """`settings` with `fields` replaced, and with the pipeline's dtype.

    Raises ValueError for invalid values, and for settings with another dtype.
    """
    if not isinstance(settings, Settings):
        raise ValueError(
            f"settings is {shown(settings)}: give a Settings, or its fields as keywords"
        )
    if settings.dtype not in (None, dtype):
        raise ValueError(
            f"the settings have dtype {settings.dtype}, but this pipeline uses {dtype}: load it "
            f"with dtype={settings.dtype!r}, or leave dtype out of the settings"
        )
    return dataclasses.replace(settings, dtype=dtype, **fields)


def check_layouts(layouts: Any) -> list[Layout]:
    """A list of layouts, from a list or a single one. Raises ValueError for anything else."""
    if isinstance(layouts, Layout):
        return [layouts]
    if isinstance(layouts, (str, dict)) or not hasattr(layouts, "__iter__"):
        raise ValueError(f"layouts is {shown(layouts)}: {_way_out(layouts)}")
    given = list(layouts)
    for number, layout in enumerate(given, 1):
        if not isinstance(layout, Layout):
            raise ValueError(f"layout {number} is {shown(layout)}: {_way_out(layout)}")
    return given


def _way_out(value: Any) -> str:
    if isinstance(value, str):
        return "give a Layout(prompt, phrases, boxes); for a prompt alone, Layout(prompt)"
    if isinstance(value, dict):
        return "give a Layout; Layout.from_json makes one from a dict"
    return "give a Layout(prompt, phrases, boxes), or a list of them"


def choose_seeds(seeds: Any, count: int) -> UInt32[np.ndarray, "B"]:
    """`count` seeds; None means 0, 1, 2, ... A single layout may take a single integer."""
    if seeds is None:
        seeds = range(count)
    elif count == 1 and np.ndim(seeds) == 0:
        seeds = [seeds]
    chosen = checked_seeds(seeds)
    if len(chosen) != count:
        raise ValueError(f"{len(chosen)} seeds for {count} layouts: give one per layout")
    return np.array(chosen, np.uint32)


def check_model(config: ModelConfig, settings: Settings) -> None:
    """Raises ValueError for settings that the model does not support."""
    unet = config.unet
    check_grounded(config, settings.wiring)
    SOLVERS[settings.solver].plan(config.schedule, settings.num_steps, eta=settings.eta)
    amount_table(settings, unet)
    if unet.map is not None and not unet.first_conv:
        gates = gate_table(settings.gamma, settings.num_steps)
        if not reads_grounding(settings.wiring) or grounded_steps(gates) < settings.num_steps:
            raise ValueError(
                "this model was converted without Stable Diffusion's first convolution, which "
                "steps without grounding need: use gamma=1 and a wiring with grounding, or convert "
                "it again with --first-conv"
            )
    if settings.attention_guidance is not None and unet.grounding not in (None, *BOXED):
        raise ValueError(
            f"attention guidance moves things toward their boxes, but this model has none (kind "
            f"{unet.grounding}): use attention_guidance=None"
        )
    if settings.paste and not unet.inpainting:
        raise ValueError(
            "paste=True puts the source back outside the boxes, but this model makes whole images: "
            "leave it out, or use an inpainting checkpoint"
        )


def check_layout(config: ModelConfig, layout: Layout) -> None:
    """Raises ValueError for a layout that the model does not take; opens no pictures."""
    if config.unet.grounding is not None:
        check_kind(layout, config.unet.grounding, config.unet.inpainting)
        check_max_persons(layout, config.unet.persons)


def check_whole(config: ModelConfig, layout: Layout, max_boxes: int) -> None:
    """As `check_layout`, and for too many boxes and pictures that cannot be read."""
    check_layout(config, layout)
    check_max_boxes(layout, max_boxes)
    check_pictures(layout)


def check_batch_size(batch_size: int | None, layouts_per_device: int) -> int:
    """Images per device at a time; by default as many as there are, up to DEFAULT_BATCH."""
    if batch_size is None:
        return max(1, min(DEFAULT_BATCH, layouts_per_device))
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(
            f"batch_size is {batch_size!r}: give a positive integer, the images per device"
        )
    return batch_size


def check_latents(latents: Any, expected: tuple[int, ...]) -> None:
    if latents is None:
        return
    if tuple(np.shape(latents)) != expected:
        raise ValueError(
            f"latents have shape {tuple(np.shape(latents))}, expected [B, h, w, C] = {expected}"
        )
    if not np.isfinite(np.asarray(latents, np.float32)).all():
        raise ValueError("latents hold NaN or infinity: give unit normal noise")
