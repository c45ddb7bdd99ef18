"""The sampling loop, compiled twice: with fusers and without.

`advance` runs any segment of a generation's steps. Its bounds are traced, so progress bars,
previews and sweeps over gamma use the same two programs.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, UInt32

from reground_jax.basics.short_repr import short_repr
from reground_jax.conditioning import Conditioning
from reground_jax.devices import SPLIT, WHOLE
from reground_jax.model import Params
from reground_jax.networks.attention import Attend
from reground_jax.networks.grounding import maps
from reground_jax.networks.recompute import blockwise_attention
from reground_jax.networks.transformer import reads_grounding
from reground_jax.networks.unet import Prepared
from reground_jax.sampling.attention_guidance.guide import Guide, Guided, guide_step
from reground_jax.sampling.attention_guidance.maps import Maps
from reground_jax.sampling.attention_guidance.steps import Steps
from reground_jax.sampling.guidance import branch_text, guide, interleave
from reground_jax.sampling.noise import FRESH, INPAINT, step_noise
from reground_jax.sampling.solvers.plan import Plan, Solver, State
from reground_jax.settings import Wiring


class Inpaint(NamedTuple):
    """The known part of an image. Mask 1: keep; 0: generate (inside a box)."""

    latents: Float[Array, "B H W C"]  # of the image, scaled
    mask: Float[Array, "B H W 1"]
    # For re-noising the known part, per step; None draws it from the seeds.
    noise: Float[Array, "B N H W C"] | None = None

    __repr__ = short_repr


class Inputs(NamedTuple):
    """What may change between calls without recompiling."""

    plan: Plan
    gates: Float[Array, "N"]  # the fusers' gate at each step (sampling/gate.py)
    guidance_scale: Float[Array, ""]
    seeds: UInt32[Array, "B"]  # one per image; read by stochastic solvers
    inpaint: Inpaint | None = None
    guided: Guided | None = None  # for attention guidance
    guidance_steps: Steps | None = None
    amounts: Float[Array, "N D 3"] | None = None  # of `coupled` (sampling/coupling.py)

    __repr__ = short_repr


# How these are sharded over devices (devices.py).
INPUT_SPECS = Inputs(
    plan=WHOLE, gates=WHOLE, guidance_scale=WHOLE, seeds=SPLIT, inpaint=SPLIT,  # type: ignore
    guided=SPLIT, guidance_steps=WHOLE, amounts=WHOLE,  # type: ignore
)  # fmt: skip
PREPARED_SPECS = Prepared(blocks=SPLIT, time=WHOLE, packed=WHOLE, appended=SPLIT)  # type: ignore
PREPARE_SPECS = (WHOLE, SPLIT, WHOLE)  # params, conditioning, timesteps
# params, state, prepared, inputs, start, stop
ADVANCE_SPECS = (WHOLE, SPLIT, PREPARED_SPECS, INPUT_SPECS, WHOLE, WHOLE)


@dataclass(frozen=True)
class Program:
    """What a sampling program is compiled for, besides shapes and dtypes."""

    unet: nnx.GraphDef
    wiring: Wiring
    solver: Solver
    attend: Attend
    grounded: bool = True  # with fusers
    stochastic: bool = False  # the solver draws noise at every step
    guide: Guide | None = None  # attention guidance


def prepare(
    graph: nnx.GraphDef,
    params: Params,
    conditioning: Conditioning,
    timesteps: Float[ArrayLike, "M"],
    *,
    wiring: Wiring,
    guided: bool,
    dtype: DTypeLike,
    downsampling: int = 8,
    pack: bool = True,
) -> Prepared:
    """Everything that is the same at every step. `guided`: each sample has both branches.

    downsampling: the VAE's, for the size of the latents that a map belongs to.
    """
    unet = nnx.merge(graph, params)
    text, grounding = conditioning.text, conditioning.grounding
    tokens = unet.tokens(grounding, dtype=dtype) if reads_grounding(wiring) else None
    appended = None
    if guided:
        text = branch_text(text, conditioning.null_text)
        if tokens is not None:
            tokens = interleave(tokens, unet.null_tokens(grounding, dtype=dtype))
    if isinstance(grounding, maps.Grounding):
        size = tuple(side // downsampling for side in grounding.map.shape[1:3])
        appended = unet.downsample_net(grounding, size, dtype=dtype)
    return unet.prepare(
        text.astype(dtype), tokens, timesteps, wiring=wiring, appended=appended, pack=pack
    )


def advance(
    program: Program,
    params: Params,
    state: State,
    prepared: Prepared,
    inputs: Inputs,
    start: Int[Array, ""],
    stop: Int[Array, ""],
) -> State:
    """`state` after steps start..stop-1. Every argument after `program` may be traced.

    A program without fusers ignores the gates.
    """
    unet = nnx.merge(program.unet, params)
    plan = inputs.plan

    def how(row: Plan) -> dict[str, Any]:
        return {
            "gate": inputs.gates[row.step] if program.grounded else None,
            "wiring": program.wiring,
            "attend": program.attend,
            "amounts": None if inputs.amounts is None else inputs.amounts[row.step],
        }

    def guided(evaluation: Array, state: State, row: Plan) -> State:
        """`state` after the updates of attention guidance, which read the conditional branch."""
        assert program.guide and inputs.guided and inputs.guidance_steps
        watch = program.guide.watch
        context = prepared.at(evaluation).conditional(state.x.shape[0])

        def maps_at(x: Array) -> Maps:
            options = how(row) | {"attend": blockwise_attention}
            x = network_input(x, inputs.inpaint, row)
            return unet.watched(x, context, watch, **options)[1]

        x, latched = guide_step(
            program.guide, maps_at, state.x, state.latched,
            inputs.guided, inputs.guidance_steps, row,
        )  # fmt: skip
        return state._replace(x=x, latched=latched)

    def evaluate(evaluation: Array, state: State) -> State:
        row = plan.row(evaluation)
        if inputs.inpaint is not None:
            noise = known_noise(inputs.inpaint, inputs.seeds, row)
            state = state._replace(x=restore_known(state.x, inputs.inpaint, noise, row))
        if program.guide is not None:
            state = guided(evaluation, state, row)
        x = network_input(state.x, inputs.inpaint, row)
        output = unet(x, prepared.at(evaluation), **how(row))
        output = guide(output.astype(jnp.float32), inputs.guidance_scale, state.x.shape[0])
        noise = None
        if program.stochastic:
            noise = step_noise(inputs.seeds, state.x.shape[1:], FRESH, row.step)
        after = program.solver.update(state, output, row, noise)
        return after._replace(latched=state.latched)

    first, last = plan.evaluations_before(start), plan.evaluations_before(stop)
    return jax.lax.fori_loop(first, last, evaluate, state)


def known_noise(inpaint: Inpaint, seeds: UInt32[Array, "B"], row: Plan) -> Float[Array, "B H W C"]:
    """Unit normal noise for the known part at this step."""
    if inpaint.noise is None:
        return step_noise(seeds, inpaint.latents.shape[1:], INPAINT, row.step)
    return jax.lax.dynamic_index_in_dim(inpaint.noise, row.step, axis=1, keepdims=False)


def restore_known(
    x: Float[Array, "B H W C"], inpaint: Inpaint, noise: Float[Array, "B H W C"], row: Plan
) -> Float[Array, "B H W C"]:
    """`x` with its known part noised to this step's level, before the step's first evaluation."""
    known = row.alpha * inpaint.latents + row.sigma * noise
    blended = known * inpaint.mask + (1 - inpaint.mask) * x
    return jnp.where(row.first, blended, x)


def network_input(
    x: Float[Array, "B H W C"], inpaint: Inpaint | None, row: Plan
) -> Float[Array, "B H W I"]:
    """C noisy channels; for inpainting, also C channels of the known latents and 1 of the mask."""
    x = x * row.input_scale
    if inpaint is None:
        return x
    return jnp.concatenate([x, inpaint.latents * inpaint.mask, inpaint.mask], axis=-1)
