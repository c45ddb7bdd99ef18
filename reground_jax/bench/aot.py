"""The sampling and training programs compiled for devices that are not here, from shapes alone."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from reground_jax.bench.hlo import Program
from reground_jax.conditioning import Conditioning
from reground_jax.config import ModelConfig
from reground_jax.devices import SPLIT, WHOLE, Device, sharding
from reground_jax.hardware import Hardware
from reground_jax.model import Params, leaf_shapes, network
from reground_jax.networks.grounding.text import Grounding
from reground_jax.programs import TEXT_CHUNK, Programs
from reground_jax.sampling.gate import gate_table
from reground_jax.sampling.loop import ADVANCE_SPECS, PREPARE_SPECS, PREPARED_SPECS, Inputs
from reground_jax.sampling.solvers import SOLVERS
from reground_jax.settings import Settings
from reground_jax.storage.checkpoint import unflatten

GROUNDED, UNGROUNDED = "steps with fusers", "steps without"  # names of `sampling_calls`

Call = tuple[Any, tuple[Any, ...]]  # a jitted function, and the shapes of its arguments


@dataclass(frozen=True)
class Compiled:
    """What the compiler laid out for one device; bytes, and the optimized program."""

    seconds: float
    arguments: int
    output: int
    aliased: int  # output that takes the place of arguments
    temporaries: int
    code: int
    program: Program

    @property
    def bytes(self) -> int:
        """Of the device's memory while it runs."""
        return self.arguments + self.output - self.aliased + self.temporaries + self.code

    def sizes(self) -> dict[str, int]:
        """Its bytes by kind, for a record."""
        return {
            "arguments": self.arguments,
            "output": self.output - self.aliased,
            "temporaries": self.temporaries,
            "code": self.code,
            "all": self.bytes,
        }


def shape(*dims: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(dims, dtype)


def compiled(call: Call) -> Compiled:
    """Raises jax.errors.JaxRuntimeError for what does not compile, or does not fit the memory."""
    function, arguments = call
    begin = time.perf_counter()
    executable = function.lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    memory = executable.memory_analysis()
    return Compiled(
        seconds,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        Program.of(executable.as_text()),
    )


def placed(values: Any, specs: Any, devices: Sequence[Device]) -> Any:
    """Shapes of `values` (arrays or shapes), laid over devices as `over_devices` wants them."""

    def place(spec: PartitionSpec, part: Any) -> Any:
        own = sharding(spec, devices)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a), sharding=own), part
        )

    return jax.tree.map(place, specs, values, is_leaf=lambda spec: isinstance(spec, PartitionSpec))


def abstract_params(config: ModelConfig, hardware: Hardware) -> Params:
    """The parameters of all networks as shapes, on every device."""
    shapes = leaf_shapes(config)
    leaves = {n: jax.ShapeDtypeStruct(s, jnp.dtype(hardware.dtype)) for n, s in shapes.items()}
    return unflatten(placed(leaves, WHOLE, hardware.devices).items())


def sampling_calls(
    config: ModelConfig, hardware: Hardware, settings: Settings, images: int
) -> dict[str, Call]:
    """Every program behind a call of the pipeline with `images` per device, by name."""
    programs, devices = Programs(config, hardware), hardware.devices
    params, batch = abstract_params(config, hardware), images * len(devices)
    encoder, unet = config.text_encoder.network, config.unet

    ids = shape(TEXT_CHUNK * len(devices), encoder.max_length, dtype=jnp.int32)
    text = shape(batch, encoder.max_length, encoder.width)
    slots, width = settings.max_boxes, unet.text_width
    grounding = Grounding(shape(batch, slots, 4), shape(batch, slots, width), shape(batch, slots))
    conditioning = Conditioning(text, text, grounding)
    plan = programs.plan(settings)
    kind = settings.wiring, settings.guidance_scale != 1
    prepare = programs.prepare_program(*kind)
    preparing = (params["unet"], conditioning, shape(*np.shape(plan.timesteps)))
    preparing = placed(preparing, PREPARE_SPECS, devices)
    # What pmap returns has no shape before it runs.
    mapped = Programs(config, replace(hardware, mapper="shard_map"))
    prepared = jax.eval_shape(mapped.prepare_program(*kind), *preparing)
    x = shape(batch, *programs.latent_shape(settings))
    state = jax.eval_shape(SOLVERS[settings.solver].init, x, plan)
    gates = gate_table(settings.gamma, settings.num_steps)
    inputs = Inputs(plan, gates, np.float32(1), shape(batch, dtype=jnp.uint32))  # type: ignore[arg-type]
    step = shape(dtype=jnp.int32)

    def advance(grounded: bool) -> Call:
        arguments = (params["unet"], state, prepared.for_steps(grounded), inputs, step, step)
        return programs.advance_program(settings, grounded), placed(
            arguments, ADVANCE_SPECS, devices
        )

    return {
        "encode": (
            programs.text_program(), placed((params["text_encoder"], ids), (WHOLE, SPLIT), devices)
        ),
        "prepare": (prepare, preparing),
        GROUNDED: advance(True),
        UNGROUNDED: advance(False),
        "decode": (
            programs.decode_program(), placed((params["vae"], x), (WHOLE, SPLIT), devices)
        ),
    }  # fmt: skip


def transformer_call(
    config: ModelConfig, hardware: Hardware, settings: Settings, images: int
) -> Call:
    """The first spatial transformer of a step with fusers, alone, for all guidance branches."""
    params, _, prepared, *_ = sampling_calls(config, hardware, settings, images)[GROUNDED][1]
    graph, attend = network(config, "unet")[0], hardware.attend
    level = next(level for level in config.unet.levels() if level.attentions)
    side = -(-config.unet.sample_size // 2**level.depth)
    branches = images * (1 if settings.guidance_scale == 1 else 2) * len(hardware.devices)
    x = shape(branches, side, side, level.channels, dtype=jnp.dtype(hardware.dtype))

    def run(params, prepared, x):
        unet = nnx.merge(graph, params)
        transformer = next(level.attentions[0] for level in unet.levels() if level.attentions)
        rows = (None,) * len(prepared.blocks)
        contexts = list(zip(prepared.blocks, prepared.packed, rows, strict=True))
        return transformer(
            x, contexts[: len(transformer.blocks)], gate=jnp.float32(1), wiring=settings.wiring,
            attend=attend,
        )[0]  # fmt: skip

    (x,) = placed((x,), (SPLIT,), hardware.devices)
    specs = (WHOLE, PREPARED_SPECS, SPLIT)
    return hardware.compiled(run, specs, SPLIT), (params, prepared, x)
