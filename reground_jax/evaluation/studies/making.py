"""Makes the images of a study's runs, as `batch` does."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

from reground_jax.basics.wording import plural
from reground_jax.batch.engine import run_units, stopping_on_signals
from reground_jax.batch.hosts import Share
from reground_jax.batch.index import Source, load_index
from reground_jax.batch.job import Job
from reground_jax.batch.lock import holder
from reground_jax.batch.manifest import Manifest
from reground_jax.batch.run import begin
from reground_jax.batch.unit import Generator, Meter, Sampler
from reground_jax.evaluation.studies.parts import Part


class Interrupted(Exception):
    """A signal came; what was finished is kept."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


@contextlib.contextmanager
def job_of(part: Part, source: Source, share: Share) -> Iterator[Job]:
    """A share of a run, locked. Raises ValueError if the model cannot make one of the layouts."""
    store = part.store(owner=f"host-{share.index:04d}")
    with store.lock(holder()):
        store.remove_parts()
        index = load_index(store, source, rules=part.run.rules(), strict=False)
        if index.rejected:
            raise ValueError(
                f"{plural(index.rejected, 'layout')} of {part.cases.title} cannot be made by this "
                f"model; see {store.url}/rejected.jsonl"
            )
        run = begin(store, part.run)
        yield Job(run, source, index, store, share, part.cases.count)


def make_units(
    job: Job,
    units: list[int],
    sampler: Sampler,
    report: Callable[[int], None],
    say: Callable[[str], None],
) -> Meter:
    """Makes units of a job. report: called with the number of images made so far.

    Raises UnitError for a unit that cannot be made, and Interrupted.
    """
    generator = Generator(job.run, job.source, job.asked, job.store, sampler)
    manifest = Manifest(job.store, job.share.index)
    with (
        contextlib.closing(generator),
        stopping_on_signals(generator.stop, say) as signals,
        warnings.catch_warnings(),
    ):
        # Real captions contain words that a small model does not know; the study measures that.
        warnings.filterwarnings("ignore", message="not in this model's vocabulary")
        run_units(
            generator, units, on_entry=manifest.add,
            on_tick=lambda: report(generator.meter.images),
        )  # fmt: skip
    if signals:
        raise Interrupted(signals[0])
    return generator.meter
