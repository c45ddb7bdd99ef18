"""Stable Diffusion's U-Net (SD1.x, SD2.x) with GLIGEN's fusers, in a one-time and a per-step part.

`prepare` computes once what is the same at every step; calling the network does the rest. The
network is unaware of guidance: `x` has B samples and the prepared context k * B (k neighbors per
sample, one per guidance branch). What the branches share, up to the first self-attention, is
computed once.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Float32, Int

from reground_jax.basics.short_repr import short_repr
from reground_jax.config import UNetConfig, UNetLevel
from reground_jax.networks.attention import Attend
from reground_jax.networks.attention_blocks import add, repeat_to
from reground_jax.networks.fusers import Packed
from reground_jax.networks.grounding import KINDS, Grounding
from reground_jax.networks.layers import (
    Conv,
    Downsample,
    GroupNorm,
    Linear,
    ResnetBlock,
    Upsample,
)
from reground_jax.networks.places import InBlock, Place, within
from reground_jax.networks.recompute import recomputed
from reground_jax.networks.transformer import BlockContext, TransformerBlock, reads_grounding
from reground_jax.settings import Wiring

RESNET_EPS = 1e-5
SPATIAL_NORM_EPS = 1e-6


class Prepared(NamedTuple):
    """Everything that is the same at every step, in the compute dtype."""

    blocks: tuple[BlockContext, ...]  # per transformer block in execution order, batch k * B
    time: tuple[Float[Array, "M C"], ...]  # per resnet in order, one row per time step, float32
    packed: tuple[Packed | None, ...]  # per transformer block; None if the wiring does not pack
    # What the first convolution makes of the channels that a map appends to x, batch B.
    appended: Float[Array, "B H W C"] | None = None

    __repr__ = short_repr

    def at(self, row: Int[Array, ""] | int) -> "Prepared":
        """With the time table cut to one row, as the U-Net expects it. `row` may be traced."""
        rows = tuple(jax.lax.dynamic_slice_in_dim(t, row, 1) for t in self.time)
        return self._replace(time=rows)

    def conditional(self, batch: int) -> "Prepared":
        """The first branch of each of `batch` samples, which reads its prompt and its boxes."""
        branches = jax.tree.leaves(self.blocks)[0].shape[0] // batch
        return self._replace(blocks=jax.tree.map(lambda array: array[::branches], self.blocks))

    def for_steps(self, grounded: bool) -> "Prepared":
        """What steps with fusers read, or without them.

        Blocks that read nothing else keep their grounding, for its dtype.
        """
        if grounded:
            return self
        blocks = tuple(
            block if block.text is None else block._replace(grounding=None) for block in self.blocks
        )
        return self._replace(blocks=blocks, packed=(None,) * len(self.packed), appended=None)


BlockArguments = tuple[BlockContext, Packed | None, Float[Array, "3"] | None]


class TimeEmbedding(nnx.Module):
    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.linear_1 = Linear(channels, 4 * channels, rngs=rngs)
        self.linear_2 = Linear(4 * channels, 4 * channels, rngs=rngs)

    def __call__(self, timesteps: Float[ArrayLike, "M"]) -> Float[Array, "M W"]:
        half = self.linear_1.kernel.shape[0] // 2
        frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
        angles = jnp.asarray(timesteps, jnp.float32)[:, None] * frequencies[None]
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return self.linear_2(jax.nn.silu(self.linear_1(waves)))


class SpatialTransformer(nnx.Module):
    """Transformer blocks over the pixels of a feature map, as a residual.

    SD1.x stores proj_in and proj_out as 1x1 convolutions, SD2.x as linear layers: with channels
    last these are the same thing.
    """

    def __init__(self, level: UNetLevel, *, config: UNetConfig, rngs: nnx.Rngs):
        channels = level.channels
        self.norm = GroupNorm(channels, groups=config.norm_groups, eps=SPATIAL_NORM_EPS, rngs=rngs)
        self.proj_in = Linear(channels, channels, rngs=rngs)
        self.blocks = nnx.List(
            TransformerBlock(
                channels,
                config.text_width,
                num_heads=level.num_heads,
                grounded=config.grounding is not None,
                rngs=rngs,
            )
            for _ in range(level.transformer_layers)
        )
        self.proj_out = Linear(channels, channels, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "A H W C"],
        contexts: Sequence[BlockArguments],
        *,
        gate: Float[Array, ""] | None,
        wiring: Wiring,
        attend: Attend,
        remat: bool = False,
        watch: frozenset[InBlock] = frozenset(),
    ) -> tuple[Float[Array, "B H W C"], dict[InBlock, Float32[Array, "B N T S"]]]:
        """The new feature map, and the attention maps in `watch`.

        contexts: each block's context, the result of its `pack`, and its amounts.
        """

        def call(block: TransformerBlock, h: Array, own: BlockArguments, watch):
            fixed = functools.partial(block, gate=gate, wiring=wiring, attend=attend, watch=watch)
            return recomputed(fixed, remat)(h, *own)

        _, height, width, channels = x.shape
        h = self.proj_in(self.norm(x)).reshape(x.shape[0], height * width, channels)
        maps = {}
        for i, (block, own) in enumerate(zip(self.blocks, contexts, strict=True)):
            kinds = frozenset(kind for index, kind in watch if index == i)
            with jax.named_scope(f"block_{i}"):
                h, found = call(block, h, own, kinds)
            maps |= {(i, kind): attention for kind, attention in found.items()}
        return add(x, self.proj_out(h).reshape(h.shape[0], height, width, channels)), maps


class Level(nnx.Module):
    """Resnets and transformers at one resolution, in the down path, the middle or the up path.

    `resnets[i]` is followed by `attentions[i]` if there is one; the middle block has one more
    resnet than transformers.
    """

    def __init__(self, level: UNetLevel, *, config: UNetConfig, rngs: nnx.Rngs):
        self.resnets = nnx.List(
            ResnetBlock(
                width,
                level.channels,
                time_width=4 * config.block_channels[0],
                groups=config.norm_groups,
                eps=RESNET_EPS,
                rngs=rngs,
            )
            for width in level.inputs
        )
        self.attentions = nnx.List(
            SpatialTransformer(level, config=config, rngs=rngs) for _ in range(level.attentions)
        )


class DownLevel(Level):
    def __init__(self, level: UNetLevel, *, config: UNetConfig, rngs: nnx.Rngs):
        super().__init__(level, config=config, rngs=rngs)
        channels = level.channels
        self.downsampler = (
            Downsample(channels, padding=(1, 1), rngs=rngs) if level.resamples else None
        )


class UpLevel(Level):
    def __init__(self, level: UNetLevel, *, config: UNetConfig, rngs: nnx.Rngs):
        super().__init__(level, config=config, rngs=rngs)
        self.upsampler = Upsample(level.channels, rngs=rngs) if level.resamples else None


class UNet(nnx.Module):
    """Predicts epsilon or v from `x` [B, H, W, in_channels]; see `prepare` and `__call__`."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        channels, levels = config.block_channels[0], config.levels()
        kind = None if config.grounding is None else KINDS[config.grounding]
        extra = 0 if config.map is None else config.map.channels
        self.conv_in = Conv(config.in_channels + extra, channels, rngs=rngs)
        self.first_conv = (
            Conv(config.in_channels, channels, rngs=rngs) if config.first_conv else None
        )
        self.time_embedding = TimeEmbedding(channels, rngs=rngs)
        self.position_net = None if kind is None else kind.position_net(config, rngs=rngs)
        self.downsample_net = (
            None
            if kind is None or kind.downsampler is None
            else kind.downsampler(config, rngs=rngs)
        )

        kinds = {"down": DownLevel, "mid": Level, "up": UpLevel}
        made = [kinds[level.part](level, config=config, rngs=rngs) for level in levels]
        middle = len(made) // 2
        self.down_blocks = nnx.List(made[:middle])
        self.mid_block = made[middle]
        self.up_blocks = nnx.List(made[middle + 1 :])
        self.conv_norm_out = GroupNorm(
            channels, groups=config.norm_groups, eps=RESNET_EPS, rngs=rngs
        )
        self.conv_out = Conv(channels, config.out_channels, rngs=rngs)

    def levels(self) -> Iterator[Level]:
        """All levels in order of execution."""
        yield from self.down_blocks
        yield self.mid_block
        yield from self.up_blocks

    @jax.named_scope("time_table")
    def time_table(self, timesteps: Float[ArrayLike, "M"]) -> tuple[Float[Array, "M C"], ...]:
        """What each resnet adds to its features at each time step: one float32 table per resnet."""
        h = jax.nn.silu(self.time_embedding(timesteps))
        resnets = (r for level in self.levels() for r in level.resnets)
        return tuple(r.time_emb_proj(h) for r in resnets if r.time_emb_proj is not None)

    @jax.named_scope("prepare")
    def tokens(
        self, grounding: Grounding | None, *, dtype: DTypeLike
    ) -> Float[Array, "B G E"] | None:
        """The grounding tokens in `dtype`; None without grounding or without fusers."""
        if grounding is None or self.position_net is None:
            return None
        return self.position_net(grounding, dtype=dtype)

    @jax.named_scope("prepare")
    def null_tokens(self, grounding: Grounding, *, dtype: DTypeLike) -> Float[Array, "B G E"]:
        """As many null tokens, for the unconditional branch of guidance."""
        assert self.position_net is not None  # or there would be no tokens
        return self.position_net.null_tokens(grounding, dtype=dtype)

    @jax.named_scope("prepare")
    def prepare(
        self,
        text: Float[Array, "K S E"],
        tokens: Float[Array, "K G E"] | None,
        timesteps: Float[ArrayLike, "M"],
        *,
        wiring: Wiring,
        appended: Float[Array, "B H W X"] | None = None,
        pack: bool = True,
    ) -> Prepared:
        """Everything that is the same at every step, in the dtype of `text`.

        K = k * B includes all guidance branches. tokens: of `self.tokens`; may be None for a
        wiring that does not read them and for a U-Net without fusers. appended: the channels that
        `downsample_net` appends to x, for a model that reads a map. pack: let branches that read
        the same features share one matrix product (`Packed`), which pays off where wide products
        are fast.
        """
        if not reads_grounding(wiring):
            tokens = appended = None
        if appended is not None:
            appended = self.conv_in.part(appended, slice(self.config.in_channels, None))
        attentions = [attention for level in self.levels() for attention in level.attentions]
        blocks = [block for attention in attentions for block in attention.blocks]
        return Prepared(
            blocks=tuple(block.context(text, tokens, wiring=wiring) for block in blocks),
            time=self.time_table(timesteps),
            packed=tuple(
                block.pack(text.dtype, wiring=wiring) if pack else None for block in blocks
            ),
            appended=appended,
        )

    def _first(self, x: Array, appended: Array | None, grounded: bool) -> Array:
        """The first convolution. A model with a map has another one for steps without fusers."""
        if self.first_conv is not None and not grounded:
            return self.first_conv(x)
        if appended is None:
            return self.conv_in(x)
        own = self.conv_in.part(x, slice(self.config.in_channels))
        return self.conv_in.biased(own + appended)

    def __call__(
        self,
        x: Float[Array, "B H W I"],
        prepared: Prepared,
        *,
        gate: Float[Array, ""] | None,
        wiring: Wiring,
        attend: Attend,
        amounts: Float[Array, "D 3"] | None = None,
        remat: bool = False,
    ) -> Float[Array, "K H W O"]:
        """The output of `watched` without maps."""
        options = {"gate": gate, "wiring": wiring, "attend": attend, "amounts": amounts}
        return self.watched(x, prepared, frozenset(), **options, remat=remat)[0]

    @jax.named_scope("unet")
    def watched(
        self,
        x: Float[Array, "B H W I"],
        prepared: Prepared,
        watch: frozenset[Place],
        *,
        gate: Float[Array, ""] | None,
        wiring: Wiring,
        attend: Attend,
        amounts: Float[Array, "D 3"] | None = None,
        remat: bool = False,
    ) -> tuple[Float[Array, "K H W O"], dict[Place, Float32[Array, "K N T S"]]]:
        """The output, and the attention maps at `watch`, unless not computed (networks/places.py).

        `prepared.time` has one row for all B samples (`Prepared.at`) or one for each. gate: the
        step's gate (float32 scalar), or None to leave out the fusers. amounts: of `coupled`, for
        each transformer block. remat: compute blocks and resnets again in the backward pass.

        Computes in the dtype of the context and returns K = k * B samples in that dtype, with the k
        branches of each sample adjacent; K = B if no block reads a context (`no_text` without
        fusers).
        """
        dtype = jax.tree.leaves(prepared.blocks)[0].dtype
        times = iter(prepared.time)
        how: dict[str, Any] = {"gate": gate, "wiring": wiring, "attend": attend, "remat": remat}
        maps: dict[Place, Array] = {}
        rows = [None] * len(prepared.blocks) if amounts is None else list(amounts)
        contexts = zip(prepared.blocks, prepared.packed, rows, strict=True)

        def layer(name: str, level: Level, i: int, h: Array) -> Array:
            time = next(times)
            with jax.named_scope(f"resnet_{i}"):
                time = time if time.shape[0] == 1 else repeat_to(time, h.shape[0])
                h = recomputed(level.resnets[i].__call__, remat)(h, time)
            if i < len(level.attentions):
                transformer = level.attentions[i]
                own = list(itertools.islice(contexts, len(transformer.blocks)))
                with jax.named_scope(f"transformer_{i}"):
                    h, found = transformer(h, own, **how, watch=within(watch, name, i))
                maps.update({Place(name, i, *key): attention for key, attention in found.items()})
            return h

        h = self._first(x.astype(dtype), prepared.appended, gate is not None)
        skips = [h]
        for shape, level in zip(self.config.levels(), self.levels(), strict=True):
            with jax.named_scope(shape.name):
                for i in range(len(level.resnets)):
                    if shape.part == "up":
                        skip = repeat_to(skips.pop(), h.shape[0])
                        h = jnp.concatenate([h, skip], axis=-1)
                    h = layer(shape.name, level, i, h)
                    if shape.part == "down":
                        skips.append(h)
                if isinstance(level, DownLevel) and level.downsampler is not None:
                    h = level.downsampler(h)
                    skips.append(h)
                if isinstance(level, UpLevel) and level.upsampler is not None:
                    _, height, width, _ = skips[-1].shape
                    h = level.upsampler(h, size=(height, width))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h))), maps
