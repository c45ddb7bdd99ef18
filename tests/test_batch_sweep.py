"""`batch` makes all gammas of a batch together: the same bytes, from fewer steps of the U-Net."""

import numpy as np
import pytest

from reground_jax.batch.engine import run_units
from reground_jax.batch.manifest import Entry
from reground_jax.batch.sampler import PipelineSampler
from reground_jax.batch.shards import read_shard
from reground_jax.batch.store import open_store
from reground_jax.layout import Layout
from reground_jax.pipeline import Pipeline
from reground_jax.programs import Programs
from reground_jax.settings import Settings
from tests.batch_cases import files
from tests.batch_stub import Stub
from tests.marks import slow
from tests.test_batch_overlap import generator

GAMMAS = (0.0, 0.3, 1.0)
STEPS = 10


class OneByOne(PipelineSampler):
    """Makes every gamma by itself."""

    def enqueue(self, encoded, rows, variants, seeds):
        return [super(OneByOne, self).enqueue(encoded, rows, [v], seeds)[0] for v in variants]


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """The lengths of the stretches of steps that are run."""
    counted: list[int] = []
    advance = Programs.advance

    def counting(self, params, state, context, inputs, grounded, start, stop, **keywords):
        counted.append(stop - start)
        return advance(self, params, state, context, inputs, grounded, start, stop, **keywords)

    monkeypatch.setattr(Programs, "advance", counting)
    return counted


def made(layouts, out, sampler, facts) -> list[Entry]:
    making, units = generator(layouts, out, sampler, **facts)
    entries: list[Entry] = []
    run_units(making, units, on_entry=entries.append)
    making.close()
    return sorted(entries, key=lambda entry: entry.unit)


@pytest.mark.parametrize("shards", ["imagefolder", slow("webdataset")])
def test_gammas_made_together_are_the_bytes_of_gammas_made_alone(
    ten, tmp_path, tiny_model_dir, steps, shards
):
    pipe = Pipeline.load(tiny_model_dir)
    facts = dict(
        settings=Settings(num_steps=STEPS), wirings=("sequential", "parallel"), gammas=GAMMAS,
        seeds=(0, 1), unit_lines=4, batch_size=4, shards=shards,
    )  # fmt: skip
    entries, images, runs = [], [], []
    for kind in (OneByOne, PipelineSampler):
        out = tmp_path / kind.__name__
        run = generator(ten, out, Stub(4), **facts)[0].run
        steps.clear()
        entries.append(made(ten, out, kind(pipe, run), facts))
        images.append(files(out))
        runs.append(sum(steps))
    assert entries[0] == entries[1] and images[0] == images[1]
    assert [entry.images for entry in entries[0]] == [4 * 12, 4 * 12, 2 * 12]
    batches = 3 * 2 * 2  # units, wirings, seeds
    assert runs == [batches * 30, batches * (10 + 3 + 7 + 7)]  # none at 0; 3 shared; then apart


def test_on_cpu_a_batch_is_done_before_another_program_may_start(ten, tmp_path, tiny_model_dir):
    """Texts that were encoded meanwhile changed images, with a thread pool of 2."""
    pipe = Pipeline.load(tiny_model_dir)
    facts = dict(settings=Settings(num_steps=STEPS), wirings=("parallel",), gammas=GAMMAS)
    run = generator(ten, tmp_path / "out", Stub(4), **facts)[0].run
    sampler = PipelineSampler(pipe, run)
    encoded = sampler.encode([Layout("a cat", ["a cat"], [(0, 0, 1, 1)])] * sampler.rows)
    variants = [settings for settings, _ in run.variants()]
    seeds = np.arange(sampler.rows, dtype=np.uint32)
    made = sampler.enqueue(encoded, slice(0, sampler.rows), variants, seeds)
    assert len(made) == len(GAMMAS) and all(images.is_ready() for images in made)


def test_a_shard_is_sorted_by_variant_however_its_images_come(ten, tmp_path):

    facts = dict(gammas=GAMMAS, seeds=(0, 1), unit_lines=8, batch_size=2)
    for shards in ("imagefolder", "webdataset"):
        out = tmp_path / shards
        (first, _) = made(ten, out, Stub(2), facts | {"shards": shards})
        records = [record for record, _ in read_shard(open_store(str(out)), first)]
        assert [record["gamma"] for record in records] == [g for g in GAMMAS for _ in range(16)]
        assert [record["line"] for record in records] == [*range(1, 9)] * 6


def test_on_cpu_a_sessions_steps_are_done_before_those_of_another_may_start(tiny_model_dir):
    """In any program: two threads' sessions computed wrong latents, with a thread pool of 2."""
    pipe = Pipeline.load(tiny_model_dir)
    layout = Layout("a cat", ["a cat"], [(0, 0, 1, 1)])
    sessions = [pipe.session(layout, Settings(num_steps=STEPS), seeds=[seed]) for seed in (0, 1)]
    assert all(session.run().latents.is_ready() for session in sessions)
