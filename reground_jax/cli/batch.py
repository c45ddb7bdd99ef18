"""`reground-jax batch`: a file of layouts becomes a data set of images."""

import argparse
import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from reground_jax.basics.wording import plural
from reground_jax.batch.engine import FAILURES, run_units, stopping_on_signals
from reground_jax.batch.hosts import find_share, start_distributed
from reground_jax.batch.index import Index, load_index, open_source
from reground_jax.batch.job import Job
from reground_jax.batch.lock import holder
from reground_jax.batch.manifest import Entry, Manifest
from reground_jax.batch.run import IMAGE_FORMATS, SHARD_FORMATS, Run, begin, check
from reground_jax.batch.store import Store, open_store
from reground_jax.batch.unit import Generator, UnitError
from reground_jax.cli import request
from reground_jax.cli.options import add_options, made
from reground_jax.cli.parser import Parser
from reground_jax.cli.progress import Heartbeat, hint, say
from reground_jax.cli.sampling import Setup, describe_devices, find_model, load
from reground_jax.readers.forms import FORMS

if TYPE_CHECKING:
    from reground_jax.batch.sampler import PipelineSampler

BATCH_SIZE = 8
EXAMPLES = """\
examples:
  reground-jax batch layouts.jsonl --out images
      one line per image: {"id": "a7", "prompt": "a cat", "phrases": ["a cat"],
      "boxes": [[0, 0, 1, 1]]}
  reground-jax batch counting.val.json --out compare \\
      --wirings sequential parallel --gammas 0.3 1 --seeds 0 1 2
      twelve images of each layout of NSR-1K, a benchmark of counting and spatial relations
  reground-jax batch layouts.jsonl --out gs://bucket/images --format webdataset --image webp \\
      --host-index 3 --host-count 8
      the share of the fourth of eight hosts

If a run stops for any reason, run the same command again to resume."""


def add(commands) -> Parser:
    parser = commands.add_parser(
        "batch",
        help="make a data set of images from a file of layouts",
        description="Makes a data set of images from a file of layouts, on all devices of this "
        "machine, or one share of it on each of several machines.",
        epilog=EXAMPLES,
    )
    _add_input_options(parser)
    add_options(parser, request.Variants)
    request.add_settings_options(parser, omit=("wiring", "gamma"))
    # Not attention: it would change images' last bits, which a run promises to keep.
    add_options(parser, Setup, omit=("attention",), defaults={"batch_size": BATCH_SIZE})
    _add_host_options(parser)
    _add_output_options(parser)
    return parser


def _add_input_options(parser: Parser) -> None:
    group = parser.group("input")
    group.add_argument(
        "layouts", metavar="LAYOUTS",
        help="JSONL with one layout per line (path or URL); or a JSON file of NSR-1K, COCO, "
        "LLM-grounded diffusion or InstanceDiffusion",
    )  # fmt: skip
    group.add_argument(
        "--form", choices=FORMS, metavar="FORM",
        help=f"form of LAYOUTS: {', '.join(FORMS)} (default: recognized from its content)",
    )  # fmt: skip
    group.add_argument(
        "--captions",
        metavar="FILE",
        help="COCO's captions file; LAYOUTS is its instances or key points file",
    )
    group.add_argument(
        "--strict", action="store_true",
        help="stop at the first line that is not a valid layout, before anything is made; by "
        "default such lines go to DIR/rejected.jsonl, with the reason",
    )  # fmt: skip


def _add_host_options(parser: Parser) -> None:
    group = parser.group("hardware")
    group.add_argument(
        "--unit-lines", type=int, default=256, metavar="N",
        help="lines of one unit, which is made as a whole and becomes one shard (default: 256)",
    )  # fmt: skip
    add_share_options(parser)
    group.add_argument(
        "--coordinator", metavar="HOST:PORT",
        help="start jax.distributed at this address; only where the platform needs it, since then "
        "all hosts stop if one does",
    )  # fmt: skip
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="ray: actors of a Ray cluster make the units (default: local)",
    )  # fmt: skip
    group.add_argument(
        "--actors", type=int, metavar="N",
        help="how many, with --engine ray (default: one per GPU)",
    )  # fmt: skip


def add_share_options(parser: Parser) -> None:
    """The options of `hosts.find_share`."""
    group = parser.group("hardware")
    group.add_argument(
        "--host-index", type=int, metavar="I",
        help="which share this process makes, from 0 (default: from SLURM's or Kubernetes's "
        "variables, else everything)",
    )  # fmt: skip
    group.add_argument("--host-count", type=int, metavar="N", help="how many shares there are")


def _add_output_options(parser: Parser) -> None:
    group = parser.group("output")
    group.add_argument(
        "--out", required=True, metavar="DIR", help="a folder, or a gs:// or s3:// URL (by fsspec)"
    )
    parser.alias("--out", "-o", "--output")
    group.add_argument(
        "--format", choices=SHARD_FORMATS, default="imagefolder",
        help="folders with metadata.jsonl, or tar files (default: imagefolder)",
    )  # fmt: skip
    group.add_argument(
        "--image", choices=IMAGE_FORMATS, default="png", help="file format (default: png)"
    )
    group.add_argument(
        "--quality", type=int, default=95, metavar="Q", help="of JPEG and WebP (default: 95)"
    )
    group.add_argument(
        "--preview", type=int, default=0, metavar="N",
        help="draw contact sheets, with boxes, of the first N lines' images, in DIR/preview",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    setup = made(Setup, arguments, batch_size=BATCH_SIZE)
    variants = made(request.Variants, arguments)
    fields = request.checked_settings(arguments, variants.wirings)
    share = find_share(arguments.host_index, arguments.host_count, os.environ)
    with open_source(arguments.layouts, arguments.form, arguments.captions) as source:
        share = start_distributed(share, arguments.coordinator)
        model = find_model(setup.model, setup.cache)
        wanted = Run(
            settings=model.settings(fields),
            wirings=tuple(variants.wirings),
            gammas=tuple(variants.gammas),
            seeds=tuple(variants.seeds),
            unit_lines=arguments.unit_lines,
            batch_size=setup.batch_size or BATCH_SIZE,
            shards=arguments.format,
            image=arguments.image,
            quality=arguments.quality,
            input_sha256=source.sha256,
            checkpoint=setup.model,
            checkpoint_sha256=model.checksum,
            **model.kind(),
        )
        store = open_store(arguments.out, owner=f"host-{share.index:04d}")
        check(store, wanted)
        with store.lock(holder()):
            store.remove_parts()
            index = load_index(store, source, rules=wanted.rules(), strict=arguments.strict)
            report_input(index, store)
            job = Job(begin(store, wanted), source, index, store, share)
            code = run_share(job, model.directory, setup, arguments)
    print(arguments.out)
    return code


def report_input(index: Index, store: Store) -> None:
    """Says how many lines are not valid layouts. Raises ValueError if no line is."""
    if not len(index.hashes):
        raise ValueError("the input is empty: give it one layout per line")
    if index.rejected:
        verdict = "is not a valid layout" if index.rejected == 1 else "are not valid layouts"
        say(
            f"{index.rejected} of {plural(len(index.hashes), 'line')} {verdict}; "
            f"see {store.url}/rejected.jsonl"
        )
    if not index.layouts:
        raise ValueError(f"no line of the input is a valid layout; see {store.url}/rejected.jsonl")


def run_share(job: Job, directory: Path, setup: Setup, arguments: argparse.Namespace) -> int:
    """Makes what is missing from the share; returns the exit code."""
    units, damaged = job.remaining()
    total = job.images(units)
    if not units:
        say(f"nothing to do: all images{job.whose()} exist")
        return 0
    if damaged:
        lines = "line is" if damaged == 1 else "lines are"
        say(f"{damaged} {lines} damaged in {job.store.url}/manifests: their units are redone")
    say(f"generating {plural(total, 'image')} ({plural(len(units), 'unit')}){job.whose()}")
    manifest = Manifest(job.store, job.share.index)
    if arguments.engine == "ray":
        from reground_jax.batch import ray_engine

        work = ray_engine.Work(
            out=arguments.out,
            layouts=arguments.layouts,
            form=arguments.form,
            captions=arguments.captions,
            model=str(directory),
            mapper=setup.mapper,
            preview=arguments.preview,
        )
        done = ray_engine.run_on_ray(work, units, actors=arguments.actors, on_entry=manifest.add)
        job.store.remove_parts()  # of actors that died
        return report_failures(len(units) - done)
    sampler = load_sampler(directory, job.run, setup)
    if sampler.rows > job.run.unit_lines:
        say(
            f"a unit has {plural(job.run.unit_lines, 'line')}, but the devices take "
            f"{sampler.rows} at a time, so some will be idle; a new output can use a larger "
            "--unit-lines"
        )
    generator = Generator(job.run, job.source, job.index, job.store, sampler, arguments.preview)
    return _run_here(generator, units, manifest, total, debug=arguments.debug)


def _run_here(
    generator: Generator, units: list[int], manifest: Manifest, total: int, *, debug: bool
) -> int:
    meter = generator.meter
    images, failures = 0, 0

    def add(entry: Entry) -> None:
        nonlocal images
        manifest.add(entry)
        images += entry.images

    def fail(error: UnitError) -> None:
        nonlocal failures
        failures += 1
        say(f"error: {error}")

    try:
        with (
            contextlib.closing(generator),
            stopping_on_signals(generator.stop, say) as signals,
            Heartbeat(total) as progress,
        ):
            run_units(
                generator,
                units,
                on_entry=add,
                on_tick=lambda: progress.show(meter.images),
                on_failure=None if debug else fail,
            )
    except OSError as error:
        say(f"error: {error.filename or generator.store.url}: {error.strerror or error}")
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        when = "when there is room, " if full else ""
        say(f"finished units are kept: {when}run the same command again to resume")
        return 1
    except UnitError as error:
        if debug:
            raise
        fail(error)
        say(f"stopped after {plural(FAILURES, 'failed unit')} in a row; finished units are kept")
        return 1
    say(
        f"{plural(images, 'image')}, {meter.rate:.2f} per second; device idle between batches: "
        f"{meter.idle:.2f} s total, {meter.longest:.2f} s max"
    )
    if signals:
        say("stopped: run the same command again to resume")
        return 128 + signals[0]
    return report_failures(failures)


def report_failures(units: int) -> int:
    """Says how many units could not be made; returns the exit code."""
    if not units:
        return 0
    was = "unit was" if units == 1 else "units were"
    say(
        f"{units} {was} not made, for the reason above; the others are kept. Correct or remove the "
        "lines and give another --out, or run the same command to try again"
    )
    return 1


def load_sampler(directory: Path, run: Run, setup: Setup) -> "PipelineSampler":
    from reground_jax.batch.sampler import PipelineSampler, local_devices

    pipe = load(directory, run.settings.dtype, setup, devices=local_devices())
    say(f"{describe_devices(pipe.devices)}, {pipe.dtype}")
    hint("compiling ...")
    return PipelineSampler(pipe, run)
