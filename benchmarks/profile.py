"""Where the time of one denoising step goes, by part of the U-Net, next to the counter's figures.

XLA's trace gives the start time of every operation, and the compiled program gives its scopes
(`jax.named_scope` in the networks), which identify the part it belongs to. Element-wise work is
charged to the part it is fused with, or in whose scope it was written. Where operations overlap,
such as a shortcut and its resnet's convolution, one of them is charged for both.
"""

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from reground_jax.bench.cases import Denoising, Work
from reground_jax.bench.harness import table
from reground_jax.bench.hlo import OTHER, operation_parts
from reground_jax.counter import INVARIANT, unet_macs
from reground_jax.pipeline import Pipeline

CALLS = 3
CONTROL = ("while", "conditional", "call", "tuple")  # their time is that of inner operations


def measure(pipe: Pipeline, work: Work) -> dict[str, Any]:
    """Milliseconds and GMAC of a grounded step's parts, and the step's time untraced."""
    denoising = Denoising.of(pipe, work)
    program, (params, _, *others) = denoising.program()
    compiled = program.lower(params, denoising.start(), *others).compile()

    def step() -> None:  # each call needs its own state, which is donated
        jax.block_until_ready(compiled(params, denoising.start(), *others))

    step()
    untraced = min(seconds_of(step) for _ in range(CALLS))
    # The least disturbed call.
    times = min((traced_times(step) for _ in range(CALLS)), key=lambda times: times.total())
    parts = operation_parts(compiled.as_text())
    spent: Counter[str] = Counter()
    for operation, seconds in times.items():
        spent[parts.get(operation, OTHER)] += 1e3 * seconds
    height, width, _ = pipe.programs.latent_shape(work.settings)
    branches = work.batch * (1 if work.settings.guidance_scale == 1 else 2)
    macs = unet_macs(
        pipe.config.unet, height, width, max_boxes=work.settings.max_boxes,
        text_tokens=pipe.config.text_encoder.network.max_length,
    )  # fmt: skip
    gmacs = {part: branches * n / 1e9 for part, n in macs.items() if part not in INVARIANT}
    return {
        "milliseconds": dict(spent.most_common()),
        "gmac": gmacs,
        "untraced_ms": 1e3 * untraced,
    }


def seconds_of(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def traced_times(call: Callable[[], None]) -> Counter[str]:
    """`operation_times` of one call."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (file,) = Path(folder).rglob("*.xplane.pb")
        return operation_times(jax.profiler.ProfileData.from_file(str(file)))


def operation_times(profile: Any) -> Counter[str]:
    """Seconds by name of HLO operation: from its start to that of the next one.

    Not the events' own durations: on CPU a large product or convolution is handed to the thread
    pool, and its event ends immediately, while the operation that needs its result waits.
    """
    started, last = [], 0.0
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is None:
                    continue
                last = max(last, event.start_ns + event.duration_ns)
                if not operation.startswith(CONTROL):
                    started.append((event.start_ns, operation))
    started.sort()
    times: Counter[str] = Counter()
    for (start, operation), (stop, _) in itertools.pairwise([*started, (last, "")]):
        times[operation] += (stop - start) / 1e9
    return times


def show(record: dict[str, Any]) -> str:
    spent, gmacs = record["milliseconds"], record["gmac"]
    all_spent, all_gmacs = sum(spent.values()), sum(gmacs.values())
    rows: list[Sequence[str]] = [["part", "ms", "% of time", "GMAC", "% of GMAC", "GFLOP/s"]]
    for part, milliseconds in spent.items():
        row = [part, f"{milliseconds:.1f}", f"{100 * milliseconds / all_spent:.1f}"]
        if gmac := gmacs.get(part):
            share = f"{100 * gmac / all_gmacs:.1f}"
            row += [f"{gmac:.3f}", share, f"{2e3 * gmac / milliseconds:.1f}"]
        rows.append([*row, *([""] * (6 - len(row)))])
    rate = f"{2e3 * all_gmacs / all_spent:.1f}"
    rows.append(["all", f"{all_spent:.1f}", "100.0", f"{all_gmacs:.3f}", "100.0", rate])
    return f"{table(rows)}\nuntraced, the step takes {record['untraced_ms']:.1f} ms"
