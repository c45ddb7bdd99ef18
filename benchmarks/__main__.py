"""`python -m benchmarks NAME`: see benchmarks/README.md."""

import argparse
import contextlib
import io
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reground_jax.basics.atomic import write_json
from reground_jax.basics.fields import check_name
from reground_jax.bench.harness import environment
from reground_jax.cli.bench import BENCHMARKS, add_work_options, settings_of, setup_of, work_of
from reground_jax.cli.parser import Parser

RECORDS = Path(__file__).parent / "records"


def parser() -> Parser:
    parser = Parser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", help=f"one of {', '.join([*BENCHMARKS, *OTHERS])}")
    add_work_options(parser)
    parser.add_argument(
        "--parallel", action="store_true", help="peer: also measure our parallel wiring"
    )
    parser.add_argument("--compile", action="store_true", help="peer: torch.compile, on a GPU")
    parser.add_argument(
        "--full", action="store_true",
        help="tpu-aot: compile the denoising steps too, for many minutes",
    )  # fmt: skip
    parser.add_argument("--artwork", type=Path, metavar="FILE", help="maps: artwork.npz")
    parser.add_argument("--out", type=Path, help="write JSON to this file")
    parser.add_argument(
        "--record", action="store_true",
        help="write command, table and JSON to a dated folder of benchmarks/records",
    )  # fmt: skip
    return parser


def network(arguments: argparse.Namespace) -> dict[str, Any]:
    from reground_jax.bench.run import run

    return run(arguments.name, *_work(arguments), repeats=arguments.repeats)


def profile(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import profile

    record = profile.measure(*_work(arguments))
    print(profile.show(record))
    return record


def flags(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import flags

    return flags.compare(*_work(arguments), repeats=arguments.repeats)


def _work(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """A pipeline with random weights, and the work for it."""
    from reground_jax.bench.presets import random_model
    from reground_jax.pipeline import Pipeline

    settings = settings_of(arguments)
    pipe = Pipeline.from_model(random_model(arguments.preset), dtype=settings.dtype)
    return pipe, work_of(pipe, settings, setup_of(arguments))


def startup(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import startup

    record = startup.measure(arguments.preset, settings_of(arguments).dtype, arguments.repeats)
    print(startup.show(record))
    return record


def scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import scaling

    settings = settings_of(arguments)
    record = scaling.measure(
        arguments.preset, settings.dtype, settings.num_steps, arguments.repeats
    )
    print(scaling.show(record))
    return record


def estimate(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import estimate

    record = estimate.estimate(arguments.preset, settings_of(arguments))
    print(estimate.show(record))
    return record


def approximate(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import approximate

    record = approximate.measure(settings_of(arguments).gamma)
    print(approximate.show(record))
    return record


def maps(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import maps

    if arguments.artwork is None:
        raise SystemExit(
            "benchmarks: maps draws its scenes from artwork: run `python -m "
            "reground_jax.emoji.artwork --out DIR` and give --artwork DIR/artwork.npz"
        )
    record = maps.measure(arguments.artwork)
    print(maps.show(record))
    return record


def operations(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import operations

    record = operations.count(arguments.preset)
    print(operations.show(record))
    return record


def guidance(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import guidance

    record = guidance.measure(*_work(arguments), repeats=arguments.repeats)
    print(guidance.show(record))
    return record


def peer(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import peer

    settings = settings_of(arguments)
    options = peer.Options(
        arguments.preset, settings.num_steps, arguments.repeats, settings.dtype,
        arguments.parallel, arguments.compile,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        prepared = peer.prepare(Path(folder), options)
        record = {"prepared": prepared, **peer.compare(Path(folder), options)}
    print(peer.show(record))
    return record | {"agrees": peer.agrees(record)}


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import throughput

    settings, batch = settings_of(arguments), setup_of(arguments).batch_size or 1
    assert isinstance(settings.gamma, float)
    options = throughput.Options(
        arguments.preset, settings.dtype or "float32", settings.num_steps, settings.gamma,
        tuple(sorted({1, batch})), arguments.repeats, arguments.compile,
    )  # fmt: skip
    record = throughput.measure(options)
    print(throughput.show(record))
    return record


def tpu_aot(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import tpu_aot

    images = setup_of(arguments).batch_size or 1
    record = tpu_aot.measure(arguments.preset, settings_of(arguments), images, full=arguments.full)
    print(tpu_aot.show(record))
    return record


def gpu_aot(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import gpu_aot

    settings, images = settings_of(arguments), setup_of(arguments).batch_size or 1
    record = gpu_aot.measure(arguments.preset, settings, images, settings.dtype)
    print(gpu_aot.show(record))
    return record


OTHERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "profile": profile,
    "flags": flags,
    "startup": startup,
    "scaling": scaling,
    "estimate": estimate,
    "approximate": approximate,
    "maps": maps,
    "operations": operations,
    "guidance": guidance,
    "peer": peer,
    "throughput": throughput,
    "tpu-aot": tpu_aot,
    "gpu-aot": gpu_aot,
}


def main(argv: list[str]) -> int:
    try:
        arguments = parser().parse_args(argv)
    except ValueError as error:
        sys.exit(f"benchmarks: {error}")
    check_name("benchmark", arguments.name, [*BENCHMARKS, *OTHERS])
    begin = time.perf_counter()
    with contextlib.redirect_stdout(Tee()) as shown:
        record = OTHERS.get(arguments.name, network)(arguments)
    import jax

    command = shlex.join(["python", "-m", "benchmarks", *argv])
    facts = {"command": command, "took_s": time.perf_counter() - begin}
    record = facts | {"environment": environment(jax.devices())} | record
    if arguments.out:
        write_json(arguments.out, record, indent=2)
    if arguments.record:
        folder = RECORDS / f"{time.strftime('%Y-%m-%d-%H%M')}-{arguments.name}-{arguments.preset}"
        write_json(folder / "record.json", record, indent=2)
        (folder / "log.txt").write_text(f"$ {command}\n{shown.text()}")
        print(f"recorded in {folder}", file=sys.stderr)
    return 0 if record.get("agrees", True) else 1


class Tee(io.StringIO):
    """Prints text immediately and keeps a copy."""

    def write(self, text: str) -> int:
        if sys.__stdout__ is not None:
            sys.__stdout__.write(text)
        return super().write(text)

    def text(self) -> str:
        return self.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
