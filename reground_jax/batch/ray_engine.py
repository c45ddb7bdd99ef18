"""Ray Data as the engine: actors that make units, for clusters that grow, shrink or mix machines.

`GenerateUnits` is a callable class for `map_batches`, for your own Ray pipelines:

    units = ray.data.from_items([{"unit": unit} for unit in index.units(run.unit_lines)])
    entries = units.map_batches(
        GenerateUnits, fn_constructor_args=(work,), batch_size=8, num_gpus=1,
        compute=ray.data.ActorPoolStrategy(size=16),
    )

Ray does the scheduling and retries the units of a dead actor; a regenerated unit has identical
bytes.
"""

import contextlib
import dataclasses
import socket
import sys
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from reground_jax.batch.engine import run_units
from reground_jax.batch.index import load_index, open_source
from reground_jax.batch.manifest import Entry
from reground_jax.batch.run import Run, read_run
from reground_jax.batch.store import open_store
from reground_jax.batch.unit import Generator, Sampler

UNITS_PER_CALL = 8  # of an actor, which runs them concurrently as in engine.py


def load_sampler(run: Run, work: "Work") -> Sampler:
    """A sampler on the actor's devices."""
    from reground_jax.batch.sampler import PipelineSampler, local_devices
    from reground_jax.pipeline import Pipeline

    pipe = Pipeline.load(
        work.model, dtype=run.settings.dtype or "float32", devices=local_devices(),
        mapper=work.mapper,
    )  # fmt: skip
    return PipelineSampler(pipe, run)


@dataclass(frozen=True)
class Work:
    """What an actor needs to make units of a started output; every node must see the paths."""

    out: str
    layouts: str
    form: str | None
    captions: str | None
    model: str
    mapper: Any = "shard_map"
    preview: int = 0
    sampler: Callable[[Run, "Work"], Sampler] = load_sampler


class GenerateUnits:
    """Batches {"unit": numbers} -> the units' manifest entries, as columns.

    A unit that cannot be made has no entry; its error is printed, which Ray shows on the driver.
    """

    def __init__(self, work: Work):
        self.resources = contextlib.ExitStack()  # held until the actor ends
        store = open_store(work.out, owner=f"actor-{uuid.uuid4().hex[:8]}")
        run = read_run(store)
        source = self.resources.enter_context(open_source(work.layouts, work.form, work.captions))
        if source.sha256 != run.input_sha256:
            raise ValueError(f"{work.layouts} on {socket.gethostname()} is not the run's input")
        self.resources.enter_context(store.lock("an actor"))
        index = load_index(store, source, rules=run.rules(), strict=False)
        sampler = work.sampler(run, work)
        self.generator = Generator(run, source, index, store, sampler, work.preview)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        entries: list[Entry] = []
        run_units(
            self.generator,
            batch["unit"].tolist(),
            on_entry=entries.append,
            on_failure=lambda error: print(error, file=sys.stderr),
        )
        names = [field.name for field in dataclasses.fields(Entry)]
        return {name: [getattr(entry, name) for entry in entries] for name in names}


def run_on_ray(
    work: Work, units: Iterable[int], *, actors: int | None, on_entry: Callable[[Entry], None]
) -> int:
    """Makes units on the cluster that Ray finds, or on this machine; calls `on_entry` locally.

    Returns how many were made, without those that failed.
    actors: by default one per GPU of the cluster, or one in total without GPUs.
    Raises ValueError if Ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise ValueError('--engine ray needs Ray: `pip install "reground-jax[ray]"`') from error
    ray.init(ignore_reinit_error=True)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    rows = [{"unit": unit} for unit in units]
    # One block per call, so that actors that join later find work.
    blocks = max(1, min(len(rows) // UNITS_PER_CALL, 1000))
    made = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        GenerateUnits,
        fn_constructor_args=(work,),
        batch_size=UNITS_PER_CALL,
        compute=ray.data.ActorPoolStrategy(size=actors or max(1, gpus)),
        num_gpus=1 if gpus else None,
    )
    done = 0
    for row in made.iter_rows():
        on_entry(Entry(**row))
        done += 1
    return done
