"""One denoising step on CPU under each of XLA's types of YNNPACK fusion, measured in turn.

The package compiles without any (devices.py). The first two types together are jaxlib 0.10.2's
default.
"""

import functools
from typing import Any

import numpy as np

from reground_jax.bench.cases import Denoising, Work, describe
from reground_jax.bench.harness import Case, measure, report
from reground_jax.pipeline import Pipeline

OPTION, PREFIX = "xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_"
KINDS = ((), ("INDIVIDUAL_DOT",), ("REDUCE",), ("INDIVIDUAL_DOT", "REDUCE"),
         ("INDIVIDUAL_CONVOLUTION",))  # fmt: skip


def compare(pipe: Pipeline, work: Work, *, repeats: int) -> dict[str, Any]:
    """Times with each type, and how far each result is from the one without any."""
    if pipe.devices[0].platform != "cpu":
        raise ValueError("XLA has YNNPACK fusions only on CPU: set JAX_PLATFORMS=cpu")
    denoising = Denoising.of(pipe, work)
    program, (params, _, *others) = denoising.program()
    lowered = program.lower(params, denoising.start(), *others)
    steps, results = {}, {}
    for kinds in KINDS:
        name = ", ".join(kinds) or "none"
        value = ",".join(PREFIX + kind for kind in kinds)
        compiled = lowered.compile(compiler_options={OPTION: value})
        steps[name] = functools.partial(_step, compiled, params, others)
        results[name] = np.asarray(steps[name](denoising.start()).x)
    cases = [
        Case(name, describe(pipe, work), step, lambda: (denoising.start(),))
        for name, step in steps.items()
    ]
    measured = measure(cases, repeats=repeats)
    print(report(measured, {}))
    plain = results["none"]
    return {
        "results": [result.to_json({}) for result in measured],
        "differs": {name: float(np.abs(x - plain).max()) for name, x in results.items()},
    }


def _step(compiled, params, others, state):
    return compiled(params, state, *others)
