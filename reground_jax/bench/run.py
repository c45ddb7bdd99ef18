"""Runs one benchmark of a pipeline, prints its table and returns its record."""

from typing import Any

from reground_jax.bench.cases import CASES, Work
from reground_jax.bench.harness import (
    GIB,
    device_memory,
    environment,
    measure,
    peak_memory,
    peaks,
    report,
)
from reground_jax.pipeline import Pipeline


def run(name: str, pipe: Pipeline, work: Work, *, repeats: int, warmup: int = 1) -> dict[str, Any]:
    """`name`: a key of CASES. `work.batch` must be a multiple of the number of devices."""
    count = len(pipe.devices)
    if work.batch % count:
        raise ValueError(f"the batch is {work.batch} on {count} devices: use a multiple of {count}")
    facts = environment(pipe.devices)
    results = measure(CASES[name](pipe, work), repeats=repeats, warmup=warmup)
    memory, on_device = peak_memory(), device_memory(pipe.devices[0])
    shares = peaks(pipe.devices[:1] if name == "attention" else pipe.devices, pipe.dtype)
    print(heading(name, pipe, facts, shares))
    print(report(results, shares))
    print(f"peak memory: {memory / GIB:.2f} GiB in the process", end="")
    print(f", {on_device / GIB:.2f} GiB on one device" if on_device else "")
    return {
        "benchmark": name,
        "source": pipe.info.get("source"),
        "dtype": pipe.dtype,
        "settings": work.settings.to_json(),
        "batch": work.batch,
        "warmup": 1 + warmup,  # untimed calls, the first of which compiles
        "environment": facts,
        "peaks": shares,
        "peak_memory": {"process": memory, "device": on_device},
        "results": [result.to_json(shares) for result in results],
    }


def heading(
    name: str, pipe: Pipeline, facts: dict[str, Any], shares: dict[str, float | None]
) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    rates = ", ".join(f"{kind} {rate / 1e12:.3f} TFLOP/s" for kind, rate in shares.items() if rate)
    return (
        f"{name}: {pipe.info.get('source')}, {pipe.dtype}, on {facts['devices']} x "
        f"{facts['device']} ({facts['processor']}, {facts['cores']} cores), peak {rates}\n"
        f"{versions}"
    )
