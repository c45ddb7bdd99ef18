"""`reground-jax batch`: a file of layouts becomes a data set of images."""

import argparse
import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reground_jax.batch.engine import FAILURES, run_units, stopping_on_signals
from reground_jax.batch.hosts import Share, find_share, start_distributed
from reground_jax.batch.index import Index, Source, load_index, open_source
from reground_jax.batch.manifest import Entry, Manifest, finished, read_manifests
from reground_jax.batch.run import IMAGE_FORMATS, SHARD_FORMATS, Run, begin, check
from reground_jax.batch.store import Store, open_store
from reground_jax.batch.unit import Generator, UnitError
from reground_jax.cli import request
from reground_jax.cli.progress import Bar, say
from reground_jax.cli.sampling import add_model_options, describe_devices, load, locate
from reground_jax.readers.forms import FORMS
from reground_jax.settings import WIRINGS, Settings
from reground_jax.wording import plural

if TYPE_CHECKING:
    from reground_jax.batch.sampler import PipelineSampler

HEARTBEAT = 60.0  # seconds between two lines of progress where there is no terminal
EXAMPLES = """\
examples:
  reground-jax batch layouts.jsonl --out images --model my-model
      a line per image: {"id": "a7", "prompt": "a cat", "phrases": ["a cat"], "boxes": [[0,0,1,1]]}
  reground-jax batch counting.val.json --out compare --model my-model \\
      --wirings sequential parallel --gammas 0.3 1 --seeds 0 1 2
      twelve images of each layout of NSR-1K
  reground-jax batch layouts.jsonl --out gs://bucket/images --format webdataset --image webp \\
      --model my-model --host-index 3 --host-count 8
      the fourth of eight hosts' share

The same command goes on where an earlier one ended, however it ended."""


def add(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "batch",
        help="make a data set of images from a file of layouts",
        description="Makes a data set of images from a file of layouts, on all devices of this "
        "machine, or a share of it on each of many.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_input_options(parser)
    request.add_settings_options(parser, wiring=False, gamma=False)
    _add_variant_options(parser)
    add_model_options(parser)
    _add_output_options(parser)
    _add_machine_options(parser)
    return parser


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to make")
    group.add_argument(
        "layouts", metavar="LAYOUTS",
        help="JSONL with a layout a line (path or URL); or a JSON file of NSR-1K, COCO, "
        "LLM-grounded diffusion or InstanceDiffusion",
    )  # fmt: skip
    group.add_argument("--form", choices=FORMS, help="of LAYOUTS (default: seen from its content)")
    group.add_argument(
        "--captions", metavar="FILE", help="COCO's captions file; LAYOUTS is its instances file"
    )
    group.add_argument(
        "--strict", action="store_true",
        help="stop at the first line that is no layout, before anything is made; else such lines "
        "go to DIR/rejected.jsonl, with the reason",
    )  # fmt: skip


def _add_variant_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how often: an image per layout and combination of")
    group.add_argument(
        "--wirings", nargs="+", default=["parallel"], metavar="NAME",
        help=f"out of {', '.join(WIRINGS)} (default: parallel)",
    )  # fmt: skip
    group.add_argument(
        "--gammas", nargs="+", default=[1.0], metavar="G", type=request.numbers,
        help="fractions 0..1 of the steps in which boxes count, or parts ON,DECAY,OFF (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--seeds", nargs="+", default=[0], metavar="N", type=request.number,
        help="run seeds (default: 0). An image's own seed is made of the run seed and the "
        "layout's id, unless its line has one",
    )  # fmt: skip


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where to")
    group.add_argument(
        "--out", required=True, metavar="DIR", help="a folder, or gs://..., s3://... by fsspec"
    )
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
        help="draw contact sheets, with boxes, of the first N lines' images, into DIR/preview",
    )  # fmt: skip


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on what")
    group.add_argument(
        "--batch-size", type=int, default=8, metavar="N",
        help="images at a time on each device (default: 8)",
    )  # fmt: skip
    group.add_argument(
        "--unit-lines", type=int, default=256, metavar="N",
        help="lines of one unit of work, and of one shard (default: 256)",
    )  # fmt: skip
    group.add_argument("--mapper", choices=("shard_map", "pmap"), default="shard_map")
    group.add_argument(
        "--host-index", type=int, metavar="I",
        help="which share this process does, from 0 (default: by SLURM's or Kubernetes's "
        "variables, else all of it)",
    )  # fmt: skip
    group.add_argument("--host-count", type=int, metavar="N", help="how many shares there are")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT",
        help="start jax.distributed there; only where the platform demands it: if one host dies, "
        "all end",
    )  # fmt: skip
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="ray: actors of a Ray cluster make the units (default: local)",
    )  # fmt: skip
    group.add_argument(
        "--actors", type=int, metavar="N", help="how many, with --engine ray (default: one a GPU)"
    )


def run(arguments: argparse.Namespace) -> int:
    settings = Settings(**request.given_settings(arguments))
    share = find_share(arguments.host_index, arguments.host_count, os.environ)
    with open_source(arguments.layouts, arguments.form, arguments.captions) as source:
        share = start_distributed(share, arguments.coordinator)
        directory, checksum = find_checkpoint(arguments.model, arguments.cache)
        wanted = Run(
            settings=settings,
            wirings=tuple(arguments.wirings),
            gammas=tuple(arguments.gammas),
            seeds=tuple(arguments.seeds),
            unit_lines=arguments.unit_lines,
            batch_size=arguments.batch_size,
            shards=arguments.format,
            image=arguments.image,
            quality=arguments.quality,
            input_sha256=source.sha256,
            checkpoint=arguments.model or directory.name,
            checkpoint_sha256=checksum,
        )
        store = open_store(arguments.out, owner=f"host-{share.index:04d}")
        check(store, wanted)
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        with store.lock(holder):
            store.remove_parts()
            index = load_index(store, source, rules=wanted.rules(), strict=arguments.strict)
            report_input(index, store)
            job = Job(begin(store, wanted), source, index, store, share)
            code = run_share(job, directory, arguments)
    print(arguments.out)
    return code


@dataclass(frozen=True)
class Job:
    """What is to be done, and by whom."""

    run: Run
    source: Source
    index: Index
    store: Store
    share: Share

    def remaining(self) -> tuple[list[int], int]:
        """The share's units that are not finished, and how many lines of manifests are damaged."""
        entries, damaged = read_manifests(self.store)
        units = self.share.of(self.index.units(self.run.unit_lines))
        return [unit for unit in units if not self._finished(unit, entries.get(unit, []))], damaged

    def _finished(self, unit: int, entries: list[Entry]) -> bool:
        """Other counts of images are those of an index that was damaged."""
        images = self.images([unit])
        whole = [entry for entry in entries if entry.images == images]
        return finished(self.store, whole) is not None

    def images(self, units: Iterable[int]) -> int:
        size = self.run.unit_lines
        hashes = self.index.hashes
        lines = sum(np.count_nonzero(hashes[unit * size : (unit + 1) * size]) for unit in units)
        return int(lines) * len(self.run.variants())

    def whose(self) -> str:
        """Of a share, which one, as the end of a phrase."""
        index, count = self.share.index, self.share.count
        return "" if count == 1 else f" of share {index} of {count} (by {self.share.origin})"


def find_checkpoint(model: str | None, cache: str | None) -> tuple[Path, str]:
    """The model's directory and its checksum."""
    from reground_jax.model import read_description

    directory = locate(model, cache)
    return directory, read_description(directory).checksum


def report_input(index: Index, store: Store) -> None:
    """Says how many lines are layouts. Raises ValueError if none is."""
    if not len(index.hashes):
        raise ValueError("the input is empty: give it a layout per line")
    if index.rejected:
        verdict = "is not a valid layout" if index.rejected == 1 else "are not valid layouts"
        say(
            f"{index.rejected} of {plural(len(index.hashes), 'line')} {verdict}; "
            f"see {store.url}/rejected.jsonl"
        )
    if not index.layouts:
        raise ValueError(f"no line of the input is a valid layout; see {store.url}/rejected.jsonl")


def run_share(job: Job, directory: Path, arguments: argparse.Namespace) -> int:
    """Makes what is missing of the share; the exit code."""
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
            mapper=arguments.mapper,
            preview=arguments.preview,
        )
        made = ray_engine.run_on_ray(work, units, actors=arguments.actors, on_entry=manifest.add)
        job.store.remove_parts()  # of actors that died
        return report_failures(len(units) - made)
    sampler = load_sampler(directory, job.run, arguments)
    if sampler.rows > job.run.unit_lines:
        say(
            f"a unit has {plural(job.run.unit_lines, 'line')}, and the devices take "
            f"{sampler.rows} at a time: some will be idle; a new output may have more --unit-lines"
        )
    generator = Generator(job.run, job.source, job.index, job.store, sampler, arguments.preview)
    return _run_here(generator, units, manifest, total, debug=arguments.debug)


def _run_here(
    generator: Generator, units: list[int], manifest: Manifest, total: int, *, debug: bool
) -> int:
    meter = generator.meter
    made, failures = 0, 0

    def add(entry: Entry) -> None:
        nonlocal made
        manifest.add(entry)
        made += entry.images

    def fail(error: UnitError) -> None:
        nonlocal failures
        failures += 1
        say(f"error: {error}")

    try:
        with (
            contextlib.closing(generator),
            stopping_on_signals(generator.stop, say) as signals,
            Progress(total) as progress,
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
        say(f"finished units are kept: {when}run the same command again to go on")
        return 1
    except UnitError as error:
        if debug:
            raise
        fail(error)
        say(f"stopped after {plural(FAILURES, 'failed unit')} in a row; finished units are kept")
        return 1
    say(
        f"{plural(made, 'image')}, {meter.rate:.2f} per second; device idle between batches: "
        f"{meter.idle:.2f} s total, {meter.longest:.2f} s max"
    )
    if signals:
        say("stopped: the same command goes on from here")
        return 128 + signals[0]
    return report_failures(failures)


def report_failures(units: int) -> int:
    """Says how many units could not be made; the exit code."""
    if not units:
        return 0
    was = "unit was" if units == 1 else "units were"
    say(
        f"{units} {was} not made, for the reason above; the others are kept. Correct or remove the "
        "lines and give another --out, or run the same command to try again"
    )
    return 1


class Progress:
    """A bar on a terminal, one per machine; else a line a minute."""

    def __init__(self, total: int):
        self.total = total
        self.next = time.monotonic() + HEARTBEAT
        shown = sys.stderr.isatty() and os.environ.get("SLURM_LOCALID", "0") == "0"
        self.bar = Bar("batch", unit="image") if shown else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.__exit__()

    def show(self, images: int) -> None:
        if self.bar is not None:
            if images:  # the first batch waits for the compiler
                self.bar.show(images, self.total)
        elif time.monotonic() >= self.next:
            self.next += HEARTBEAT
            say(f"{images} of {plural(self.total, 'image')}")


def load_sampler(directory: Path, run: Run, arguments: argparse.Namespace) -> "PipelineSampler":
    from reground_jax.batch.sampler import PipelineSampler, local_devices

    devices = local_devices()
    pipe = load(
        directory, run.settings.dtype, keep=not arguments.no_cache, cache=arguments.cache,
        devices=devices, mapper=arguments.mapper,
    )  # fmt: skip
    say(f"{describe_devices(pipe.devices)}, {pipe.dtype}")
    return PipelineSampler(pipe, run)
