"""TPU chips by their datasheets, and their compiler, which is a package and needs no chip.

To add a chip, or another topology of one, add a row to `CHIPS`; libtpu knows the names.
"""

import contextlib
import importlib.util
import os
import platform
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from reground_jax.basics.fields import check_name
from reground_jax.bench.harness import DATASHEET

INSTALL = "pip install 'reground-jax[aot]'"
# What libtpu would otherwise ask a cloud's metadata server for, and wait.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process that compiles stops at a lock file
}


class Chip(NamedTuple):
    """Of one chip. Cycles of the compiler's cost model become seconds by `clock`, the frequency at
    which the matrix units reach `flops`: 2 * units * side**2 * clock."""

    topology: str  # the smallest one that libtpu compiles for; one device of it is one chip
    flops: float  # bfloat16 FLOP/s
    memory: float  # HBM that programs may use, bytes
    clock: float  # Hz


PEAKS = DATASHEET["bfloat16"]
CHIPS = {
    "v5e": Chip("v5e:2x2", PEAKS["TPU v5 lite"], 15.75 * 2**30, 1.5e9),
    "v6e": Chip("v6e:2x2", PEAKS["TPU v6 lite"], 31.25 * 2**30, 1.75e9),
}


def chip_of(topology: str) -> str:
    """The chip of a topology such as "v5e:4x4". Raises ValueError for one that is not in CHIPS."""
    name = topology.partition(":")[0]
    check_name("TPU", name, CHIPS)
    return name


def tpu_devices(topology: str) -> tuple[Any, ...]:
    """The devices of a topology that is not here: programs compile for them and cannot run.

    topology: a chip and its shape, such as "v5e:4x4"; libtpu defines which exist. Raises ValueError
    where libtpu is missing, or does not know the topology.
    """
    chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        linux = platform.system() == "Linux" and platform.machine() in ("x86_64", "AMD64")
        raise ValueError(
            "compiling for TPU needs libtpu, "
            + (f"which is not installed: {INSTALL}" if linux else "which is for Linux on x86-64")
        )
    from jax.experimental import topologies

    with _environment():
        try:
            return tuple(topologies.get_topology_desc(topology, platform="tpu").devices)
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"libtpu has no topology {topology!r}: {error}") from error


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """ENVIRONMENT while libtpu loads; left behind, it would make this machine look like a TPU's."""
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
