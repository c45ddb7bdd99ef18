"""`train --dry-run`: the training step compiled from shapes alone, without data or weights.

Bytes and collectives are what the compiler laid out; FLOP are counted (`costs.py`); days are a
division by an assumed share of a chip's peak. Nothing is run, so nothing here is a measurement.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from reground_jax.basics.wording import plural
from reground_jax.bench.aot import Call, Compiled, compiled, placed, shape
from reground_jax.bench.chips import CHIPS, Chip
from reground_jax.config import ModelConfig
from reground_jax.devices import SPLIT, WHOLE, Device
from reground_jax.model import leaf_shapes
from reground_jax.networks.grounding import maps, text
from reground_jax.readers.annotated import MAX_BOXES
from reground_jax.training.config import StageConfig
from reground_jax.training.costs import step_flops
from reground_jax.training.losses import ImageBatch, LatentBatch
from reground_jax.training.opening import check_size, is_diffusion, stage_model, stage_terms
from reground_jax.training.optimizer import optimizer
from reground_jax.training.recipe import Recipe
from reground_jax.training.stages import Parts, parts_of, stage_loss
from reground_jax.training.state import initial_state
from reground_jax.training.trainer import compiled_step

SHARE = 0.3  # of a chip's peak that the days assume
DAY = 86_400  # seconds


@dataclass(frozen=True)
class DryRun:
    """A stage that was compiled, not run."""

    kind: str
    config: StageConfig
    devices: int
    chip: Chip | None  # None: this machine's own devices
    compiled: Compiled
    beside: int  # bytes per device of parameters that the step does not read
    flops: int  # of one step on all devices


def dry_run(
    kind: str,
    config: StageConfig,
    base: ModelConfig,
    devices: Sequence[Device],
    chip: Chip | None = None,
) -> DryRun:
    """Compiles a stage's step for `devices`, which may be compile-only.

    base: the model that the stage would start from. chip: what the devices are, if it is known.
    Raises ValueError for a config that training would refuse, as far as that needs no data, and for
    a step that does not fit the chip's memory.
    """
    terms, model = stage_terms(kind, config), stage_model(kind, config, base)
    side = image_side(kind, config, model)
    check_size(kind, model, terms, side)
    call, parts = step_call(kind, config, model, devices, side)
    try:
        done = compiled(call)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"the step does not fit the memory of a device ({_first_line(error)}): "
            + ('set "remat": "blocks", ' if config.remat == "none" else "")
            + "use more devices or a smaller batch_size"
        ) from error
    images = config.recipe.batch_size
    flops = images * step_flops(kind, model, side, remat=config.remat != "none")
    return DryRun(kind, config, len(devices), chip, done, _bytes(parts.beside), flops)


def image_side(kind: str, config: StageConfig, model: ModelConfig) -> int:
    """Pixels: the source's, if it says so, and otherwise the model's."""
    given = config.source.get("image_size", model.side)
    return given if isinstance(given, int) and given > 0 else model.side


def step_call(
    kind: str, config: StageConfig, model: ModelConfig, devices: Sequence[Device], side: int
) -> tuple[Call, Parts]:
    """The step over `devices` with the shapes of its arguments, and the stage's parameters."""
    leaves = {name: shape(*dims) for name, dims in leaf_shapes(model).items()}
    parts = jax.eval_shape(lambda leaves: parts_of(kind, config, leaves), leaves)
    rule, terms = optimizer(config.recipe), stage_terms(kind, config)
    state = jax.eval_shape(lambda trained: initial_state(trained, rule), parts.trained)
    loss = stage_loss(kind, config, terms, model, devices[0].platform)
    step = compiled_step(loss, config.recipe, devices)
    batch = batch_shapes(kind, model, config.recipe.batch_size, side)
    return (step, placed((state, parts.frozen, batch), (WHOLE, WHOLE, SPLIT), devices)), parts


def batch_shapes(kind: str, model: ModelConfig, size: int, side: int) -> ImageBatch | LatentBatch:
    """A batch of `size` images of `side` pixels, as shapes."""
    position = shape(size, dtype=jnp.int32)
    if not is_diffusion(kind):
        return ImageBatch(shape(size, side, side, 3, dtype=jnp.uint8), position)
    latent, width = side // model.vae.downsampling, model.unet.text_width
    ids = shape(size, model.text_encoder.tokenizer.max_length, dtype=jnp.int32)
    grounding, slots = None, (size, MAX_BOXES)
    if kind == "grounding" and model.unet.map is not None:
        grounding = maps.Grounding(shape(size, side, side, dtype=jnp.uint8), shape(size))
    elif kind == "grounding":
        grounding = text.Grounding(shape(*slots, 4), shape(*slots, width), shape(*slots))
    latents = shape(size, latent, latent, model.vae.latent_channels)
    return LatentBatch(latents, ids, ids, grounding, position)


def report(run: DryRun) -> str:
    """What was found, in lines for people."""
    recipe, found = run.config.recipe, run.compiled
    share = recipe.batch_size // run.devices
    limit = f" of {_size(run.chip.memory)}" if run.chip else ""
    parts = {
        "arguments": found.arguments, "results in new memory": found.output - found.aliased,
        "temporaries": found.temporaries, "code": found.code,
    }  # fmt: skip
    lines = [
        f"stage {run.kind}, {run.config.dtype}, remat {run.config.remat}: batch {recipe.batch_size}"
        f" on {plural(run.devices, 'device')}, {share} each; compiled in {found.seconds:.0f} s",
        f"memory per device, as laid out: {_size(found.bytes)}{limit} ("
        + ", ".join(f"{name} {_size(size)}" for name, size in parts.items()) + ")",
    ]  # fmt: skip
    if run.beside:
        lines.append(
            f"  besides, {_size(run.beside)} of the autoencoder, which makes the latents; not "
            "counted: what it needs while it runs, and previews"
        )
    lines.append(f"collectives per step: {_collectives(run)}")
    lines.append(f"FLOP per step: {run.flops:.3g} on all devices, counted from the shapes")
    return "\n".join([*lines, *_days(run)])


def _days(run: DryRun) -> list[str]:
    """Days for the recipe's steps on each chip of the table, or on the one that was asked for."""
    recipe = run.config.recipe
    count = run.devices if run.chip else 1
    lines = [
        f"{recipe.end} steps at {SHARE:.0%} of the datasheet's peak, which is an assumption and "
        "not a measurement:"
    ]
    for name, chip in CHIPS.items():
        if run.chip in (None, chip):
            days = days_on(chip, recipe, run.flops) / count
            lines.append(f"  {name}: {days:.3g} days on {plural(count, 'chip')}")
    return lines


def days_on(chip: Chip, recipe: Recipe, flops: int, share: float = SHARE) -> float:
    """Days that one chip takes for a recipe with `flops` per step, at a share of its peak."""
    return recipe.end * flops / (share * chip.flops) / DAY


def _collectives(run: DryRun) -> str:
    if run.devices == 1:
        return "none, on a single device"
    kinds = run.compiled.program.collectives()
    told = [f"{n['count']} {kind} of {n['bytes']:,} bytes" for kind, n in kinds.items()]
    return ", ".join(told) or "none"


def _bytes(tree: Any) -> int:
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
