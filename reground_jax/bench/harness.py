"""What all benchmarks share: warm-up, repetitions, memory, FLOP rates, and the environment.

Times are wall-clock seconds from a call until `jax.block_until_ready` returns its result. FLOP come
from counter.py: what the algorithm needs, so a program that does less work gets a higher share.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from reground_jax.devices import Device, compile_clock, compiler_options
from reground_jax.version import __version__

# Dense datasheet peaks in FLOP/s, by prefix of the device's name.
DATASHEET = {
    "bfloat16": {
        "NVIDIA H200": 989e12, "NVIDIA H100": 989e12, "NVIDIA A100": 312e12, "NVIDIA A800": 312e12,
        "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6 lite": 918e12,
    },
    "float32": {"NVIDIA H200": 67e12, "NVIDIA H100": 67e12, "NVIDIA A100": 19.5e12},
}  # fmt: skip
GIB = 2**30

BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"  # XLA alone, without tracing


@dataclass(frozen=True)
class Result:
    """The measurements of one case."""

    name: str
    shape: str  # of its input, in words
    first: float  # seconds of the first call, which traces and compiles
    compiled: float  # seconds of these that XLA spent compiling
    seconds: tuple[float, ...]  # of every repetition after that
    images: int = 0  # made per repetition; 0 if none
    macs: int = 0  # multiply-accumulates per repetition; 0 if not counted

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def flops(self) -> float:
        """FLOP per second."""
        return 2 * self.macs / self.median

    def to_json(self, peaks: dict[str, float | None]) -> dict[str, Any]:
        shares = {name: self.flops / peak for name, peak in peaks.items() if peak and self.macs}
        return {
            "name": self.name,
            "shape": self.shape,
            "first_s": self.first,
            "compile_s": self.compiled,
            "seconds": list(self.seconds),
            "median_s": self.median,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "images_per_s": self.images / self.median if self.images else None,
            "gmac": self.macs / 1e9 if self.macs else None,
            "tflops": self.flops / 1e12 if self.macs else None,
            "share_of_peak": shares or None,
        }


@dataclass(frozen=True)
class Case:
    """Something to measure: `call` on the result of `setup`, rerun untimed before each call."""

    name: str
    shape: str
    call: Callable[..., Any]
    setup: Callable[[], tuple[Any, ...]] = tuple
    images: int = 0
    macs: int = 0


def measure(cases: Sequence[Case], *, repeats: int, warmup: int = 1) -> list[Result]:
    """Measures all cases in turn, so that changes in the machine's speed affect them equally.

    The first call of each compiles; `warmup` calls follow, and then `repeats` timed ones.
    """
    firsts, compiled = [], []
    for case in cases:
        case.setup()  # so that compiling the setup itself is not charged to the case
        with compile_clock(BACKEND_COMPILE) as spent:
            firsts.append(_timed(case))
        compiled.append(spent())
    for _ in range(warmup):
        for case in cases:
            _timed(case)
    seconds = [[_timed(case) for case in cases] for _ in range(repeats)]
    return [
        Result(case.name, case.shape, first, spent, tuple(times), case.images, case.macs)
        for case, first, spent, times in zip(
            cases, firsts, compiled, zip(*seconds, strict=True), strict=True
        )
    ]


def _timed(case: Case) -> float:
    arguments = jax.block_until_ready(case.setup())
    begin = time.perf_counter()
    jax.block_until_ready(case.call(*arguments))
    return time.perf_counter() - begin


def measured_peak(device: Device, dtype: str) -> float:
    """FLOP/s of a large square matrix product on one device: the best it can do."""
    side, calls = (2048, 4) if device.platform == "cpu" else (8192, 20)
    with jax.default_device(device):
        x = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
        product = jax.jit(
            lambda a: jnp.matmul(a, a, precision="highest"),
            compiler_options=compiler_options([device]),
        )
        jax.block_until_ready(product(x))
        best = float("inf")
        for _ in range(calls):
            begin = time.perf_counter()
            jax.block_until_ready(product(x))
            best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def peaks(devices: Sequence[Device], dtype: str) -> dict[str, float | None]:
    """FLOP/s of all devices together, measured and from the datasheet (None if unknown)."""
    device, count = devices[0], len(devices)
    listed = datasheet_peak(device.device_kind, dtype)
    return {
        "measured": measured_peak(device, dtype) * count,
        "datasheet": listed and listed * count,
    }


def datasheet_peak(kind: str, dtype: str) -> float | None:
    """FLOP/s of one device from its datasheet; None if unknown."""
    names = [name for name in DATASHEET.get(dtype, {}) if kind.startswith(name)]
    return DATASHEET[dtype][max(names, key=len)] if names else None


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        # Not ru_maxrss, which starts at the parent process's peak.
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def device_memory(device: Device) -> int | None:
    """Peak memory in use on a device so far, in bytes; None if the device is the host."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats and stats.get("peak_bytes_in_use")


def environment(devices: Sequence[Device]) -> dict[str, Any]:
    """What a measurement depends on besides the program."""
    return {
        "versions": {
            "reground-jax": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        },
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "devices": len(devices),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _processor() -> str:
    """Its name, with the numbers that tell generations apart where a cloud hides the model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        facts.setdefault(name.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor()
    numbers = [f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts]
    return ", ".join([facts["model name"], *numbers])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under a heading row, in columns; only the first column is left-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def report(results: Sequence[Result], shares: dict[str, float | None]) -> str:
    """The results as a table."""
    known = {name: peak for name, peak in shares.items() if peak}
    heading = ["what", "of", "median s", "min", "max", "first s", "compile s", "images/s"]
    rows = [[*heading, "TFLOP/s", *(f"% {name}" for name in known)]]
    for r in results:
        row = [r.name, r.shape, f"{r.median:.4f}", f"{min(r.seconds):.4f}", f"{max(r.seconds):.4f}"]
        row += [f"{r.first:.2f}", f"{r.compiled:.2f}"]
        row += [f"{r.images / r.median:.3f}" if r.images else ""]
        row += [f"{r.flops / 1e12:.3f}" if r.macs else ""]
        row += [f"{100 * r.flops / peak:.1f}" if r.macs else "" for peak in known.values()]
        rows.append(row)
    return table(rows)
