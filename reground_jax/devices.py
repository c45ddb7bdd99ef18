"""One function on all devices: data parallel, without collectives, by `shard_map` or `pmap`.

Specs mark each argument (or each part of one) as split along its first axis or replicated on every
device, as prefixes of the argument's pytree; both mappers use the same specs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# jax.Device is a variable to type checkers.
Device = Any
Mapper = Literal["shard_map", "pmap"]
MAPPERS: tuple[Mapper, ...] = ("shard_map", "pmap")

SPLIT = PartitionSpec("data")
WHOLE = PartitionSpec()


@runtime_checkable
class Mapped(Protocol):
    """A function over devices, compiled for each set of shapes when it is first called."""

    def __call__(self, *args: Any) -> Any: ...

    def lower(self, *args: Any) -> Any:
        """As of a jitted function: `lower(*args).compile()` compiles ahead for later calls."""


def over_devices(
    function: Callable[..., Any],
    in_specs: tuple[Any, ...],
    out_specs: Any,
    *,
    devices: Sequence[Device],
    mapper: Mapper = "shard_map",
    donate: tuple[int, ...] = (),
) -> Mapped:
    """A compiled `function` that runs on each device over its shard of the SPLIT arguments.

    First axes of SPLIT arguments must be multiples of the number of devices. Matrix products use
    the full precision of their inputs (float32 means float32 on TPU and NVIDIA, too).
    donate: positions of arguments whose memory the result may reuse (`shard_map` only).
    """

    def precise(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args)

    wrap = {"shard_map": _shard_mapped, "pmap": _pmapped}[mapper]
    return wrap(precise, in_specs, out_specs, tuple(devices), donate)


def choose_devices(devices: Sequence[Device] | None) -> tuple[Device, ...]:
    """`devices`, or all of this process: with several hosts, each makes its own images.

    Raises ValueError unless they are distinct, of one platform, and usable by this process.
    """
    if devices is None:
        return tuple(jax.local_devices())
    way_out = "give a list of JAX devices, such as jax.local_devices()[:1]"
    try:
        chosen = tuple(devices)
    except TypeError:
        raise ValueError(f"devices is {devices!r}: {way_out}") from None
    if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
        raise ValueError(f"devices is {devices!r}: {way_out}")
    if len(set(chosen)) < len(chosen) or len({device.platform for device in chosen}) > 1:
        raise ValueError(f"devices is {devices!r}: they must be distinct and of one platform")
    if far := [device for device in chosen if device.process_index != jax.process_index()]:
        raise ValueError(
            f"{far[0]} belongs to another process: {way_out}, and give each process its own images "
            "(as `reground-jax batch` does)"
        )
    return chosen


def place_whole(array: Any, devices: Sequence[Device]) -> jax.Array:
    """`array` replicated on every device, as needed for WHOLE arguments."""
    return jax.device_put(array, sharding(WHOLE, devices))


def sharding(spec: PartitionSpec, devices: Sequence[Device]) -> NamedSharding:
    """How `over_devices` lays out an argument with this spec (under `shard_map`)."""
    return NamedSharding(_mesh(devices), spec)


def compute_capability(device: Device) -> float | None:
    """Of an NVIDIA GPU, such as 9.0; None for any other device."""
    try:
        return float(getattr(device, "compute_capability", ""))
    except ValueError:  # AMD's are names, such as "gfx90a"
        return None


def compiler_options(devices: Sequence[Device]) -> dict[str, str]:
    """Per-program options: on CPU, no YNNPACK fusions, which jaxlib 0.10-0.11 miscompiles.

    (jax issues 39103, 39257, 40412.) The full-size U-Net is also faster without them.
    """
    cpu = devices[0].platform == "cpu"
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if cpu else {}


def _mesh(devices: Sequence[Device]) -> Mesh:
    return Mesh(np.array(devices), ("data",))


def _shard_mapped(function, in_specs, out_specs, devices, donate):
    mapped = jax.shard_map(
        function,
        mesh=_mesh(devices),
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,  # would require casts between replicated and split values in loop carries
    )
    return jax.jit(mapped, donate_argnums=donate, compiler_options=compiler_options(devices))


def _pmapped(function, in_specs, out_specs, devices, donate):
    """jax.pmap over a leading device axis, compiled ahead of time so that it takes options."""
    count = len(devices)

    def axes(specs: Any) -> Any:
        return jax.tree.map(
            lambda spec: 0 if spec == SPLIT else None,
            specs,
            is_leaf=lambda spec: isinstance(spec, PartitionSpec),
        )

    def to_devices(spec: PartitionSpec, part: Any) -> Any:
        if spec == WHOLE:
            return part
        return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), part)

    def from_devices(spec: PartitionSpec, part: Any) -> Any:
        if spec == WHOLE:
            return jax.tree.map(lambda x: x[0], part)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), part)

    def over_specs(convert: Callable, specs: Any, values: Any) -> Any:
        is_spec = lambda spec: isinstance(spec, PartitionSpec)  # noqa: E731
        return jax.tree.map(convert, specs, values, is_leaf=is_spec)

    mapped = jax.pmap(function, axis_name="data", in_axes=axes(in_specs), devices=devices)
    compiled: dict[Any, Callable] = {}

    def split(args: Any) -> Any:
        return over_specs(to_devices, in_specs, args)

    def compile(args: Any) -> Callable:
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple(jax.typeof(leaf) for leaf in leaves)  # shape and dtype
        if key not in compiled:
            compiled[key] = mapped.lower(*args).compile(compiler_options=compiler_options(devices))
        return compiled[key]

    def call(*args: Any) -> Any:
        args = split(args)
        return over_specs(from_devices, out_specs, compile(args)(*args))

    def lower(*args: Any) -> SimpleNamespace:
        return SimpleNamespace(compile=lambda: compile(jax.eval_shape(split, args)))

    call.lower = lower  # type: ignore[attr-defined]
    return call


@contextlib.contextmanager
def compile_clock(prefix: str = "/jax/core/compile/") -> Iterator[Callable[[], float]]:
    """Yields a function that returns the total seconds of JAX events starting with `prefix`.

    Event names are those of jax.monitoring; the default covers tracing and all of compilation.
    """
    seconds = 0.0

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal seconds
        if event.startswith(prefix):
            seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
