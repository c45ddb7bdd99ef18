"""The methods: which maps each reads, and of which losses its updates are.

    Guide     what a program is compiled for: the method, and the places whose maps it reads
    Guided    what there is to guide in each sample, an argument as the numbers of each step are

To add a method: its numbers in reground_jax/attention_guidance.py, its arrays and loss in a file
here, and a `Phase`, its places and its steps in this file and steps.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from reground_jax.attention_guidance import (
    LMD,
    AttentionGuidance,
    AttentionRefocusing,
    BoxDiff,
    LayoutGuidance,
)
from reground_jax.basics.short_repr import short_repr
from reground_jax.config import UNetConfig, UNetLevel
from reground_jax.networks.places import Place, places
from reground_jax.sampling.attention_guidance import backward, boxdiff, refocusing
from reground_jax.sampling.attention_guidance.boxes import guided_layouts
from reground_jax.sampling.attention_guidance.maps import Maps
from reground_jax.sampling.attention_guidance.steps import Steps, steps_of
from reground_jax.sampling.attention_guidance.updates import Phase, updated
from reground_jax.sampling.solvers.plan import Plan
from reground_jax.words import Words


class Guided(NamedTuple):
    """What to guide in each sample."""

    targets: Any  # of the method's module, [B, ...]
    some: Bool[Array | np.ndarray, "B"]  # whether a sample has anything to guide

    __repr__ = short_repr


@dataclass(frozen=True)
class Guide:
    """A method as a static argument."""

    method: type[AttentionGuidance]
    refine: bool
    watch: frozenset[Place]

    @classmethod
    def of(cls, method: AttentionGuidance, config: UNetConfig) -> "Guide":
        """What a program for this method is compiled for."""
        return cls(type(method), getattr(method, "refine", False), watched(type(method), config))

    def phases(self) -> tuple[Phase, ...]:
        """The loops of updates in each step, in order."""
        if self.method is BoxDiff:
            return (_REFINING, _BOXDIFF) if self.refine else (_BOXDIFF,)
        return {
            AttentionRefocusing: (_REFOCUSING,), LayoutGuidance: (_LAYOUT,), LMD: (_LMD,)
        }[self.method]  # fmt: skip

    @property
    def latched(self) -> bool:
        """Whether samples carry from step to step that they are done."""
        return any(phase.latched for phase in self.phases())


def watched(method: type[AttentionGuidance], config: UNetConfig) -> frozenset[Place]:
    """The places that a method reads: at 512 px, all of 16 x 16, or the middle and the first up.

    In general, all at the deepest level that has attention outside of the middle block.
    """
    outer = [level for level in config.levels() if level.attentions and level.part != "mid"]
    deepest = max(level.depth for level in outer)
    if method in (LayoutGuidance, LMD):
        up = (level for level in outer if (level.depth, level.part) == (deepest, "up"))
        names = {"mid_0", *(level.name for level in up)}
    else:
        names = {level.name for level in outer if level.depth == deepest}
    kinds = ("text", "self", "fuser") if method is AttentionRefocusing else ("text",)
    return frozenset(
        place for place in places(config) if place.level in names and place.attention in kinds
    )


def guided_in(
    method: AttentionGuidance, words: Words, config: UNetConfig, size: Sequence[int]
) -> Guided:
    """What to guide in a batch, on the host. size: rows and columns of the latents."""
    layouts, levels = guided_layouts(words), {level.name: level for level in config.levels()}
    watch = _ordered(watched(type(method), config))
    sizes = [_map_size(levels[p.level], size) for p in watch if p.attention == "text"]
    match method:
        case BoxDiff():
            targets = boxdiff.targets(layouts, sizes[0], share=method.share, reach=method.reach)
        case AttentionRefocusing():
            targets = refocusing.targets(layouts, sizes[0])
        case LMD():
            targets = backward.targets(layouts, sizes, share=method.share, by_extent=True)
        case _:
            targets = backward.targets(layouts, sizes)
    some = np.array([bool(layout.boxes) for layout in layouts])
    return Guided(targets, some)


def guidance_inputs(
    method: AttentionGuidance | None,
    words: Words | None,
    config: UNetConfig,
    size: Sequence[int],
    plan: Plan,
) -> tuple[Guided | None, Steps | None]:
    """`Inputs.guided` and `Inputs.guidance_steps`; None without a method. Raises ValueError.

    words: `Conditioning.words`. size: rows and columns of the latents.
    """
    if method is None:
        return None, None
    if words is None:
        raise ValueError(
            "the settings have attention guidance, but the conditioning was encoded without "
            "its words: pass the guidance to `encode`"
        )
    return guided_in(method, words, config, size), steps_of(method, plan)


def guide_step(
    guide: Guide,
    maps_at: Callable[[Array], Maps],
    x: Float[Array, "B H W C"],
    latched: Float[Array, "B"] | None,
    guided: Guided,
    steps: Steps,
    row: Plan,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B"] | None]:
    """x after the updates of a step, none after its first evaluation; and `State.latched`.

    maps_at: the conditional branch's maps at x.
    """
    step = jax.tree.map(lambda column: jnp.asarray(column)[row.step], steps)
    # Sizes are for latents of variance 1; those of Euler's are 1 / input_scale times as large, and
    # so are their gradients smaller.
    step = step._replace(
        most=jnp.where(row.first, step.most, 0),
        refine_most=jnp.where(row.first, step.refine_most, 0),
        size=step.size / row.input_scale**2,
    )
    some = jnp.asarray(guided.some)
    for phase in guide.phases():
        x, latched = updated(phase, maps_at, x, latched, guided.targets, some, step)
    return x, latched


def _of(maps: Maps, kind: str) -> Maps:
    return {place: maps[place] for place in _ordered(maps) if place.attention == kind}


def _ordered(found: Iterable[Place]) -> list[Place]:
    return sorted(found)  # as JAX sorts the keys of a dict


def _refocusing_loss(maps: Maps, targets, step: Steps) -> tuple[Array, Array]:
    loss, smallest = refocusing.cross_loss(_of(maps, "text"), targets, step.early)
    loss += refocusing.self_loss(_of(maps, "self"), targets)
    if fusers := _of(maps, "fuser"):
        weight = jnp.where(step.early, refocusing.GSA_WEIGHT, 0)
        loss += weight * refocusing.fuser_loss(fusers, targets)
    return jnp.multiply(step.scale, loss), smallest


def _single(loss: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    def both(maps: Maps, targets, step: Steps) -> tuple[Array, Array]:
        value = loss(maps, targets, step)
        return value, value

    return both


def _boxdiff_loss(maps: Maps, targets, step: Steps) -> tuple[Array, Array]:
    return boxdiff.loss(maps, targets, step.edge)


_REFINING = Phase(
    _single(lambda maps, targets, step: _boxdiff_loss(maps, targets, step)[1]),
    lambda loss, _, step: loss <= step.refine_target,
    most="refine_most",
    ask_first=True,
)
_BOXDIFF = Phase(_boxdiff_loss, lambda loss, *_: jnp.ones_like(loss, bool))
_REFOCUSING = Phase(
    _refocusing_loss,
    lambda loss, smallest, step: (smallest >= step.enough) | (loss <= step.close),
)
_LAYOUT = Phase(
    _single(lambda maps, targets, step: backward.layout_loss(maps, targets)),
    lambda loss, _, step: loss <= step.enough,
    latched=True,
)
_LMD = Phase(
    _single(lambda maps, targets, step: backward.lmd_loss(maps, targets, step.background)),
    lambda loss, _, step: loss <= step.enough,
    latched=True,
)


def _map_size(level: UNetLevel, size: Sequence[int]) -> tuple[int, int]:
    height, width = (-(-side // 2**level.depth) for side in size)
    return height, width
