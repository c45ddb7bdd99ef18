"""Several processes convert to one path at once: one writes it, the others use it or report it.

Found with three processes that loaded a new model at the same moment: two died at the rename.
"""

import multiprocessing
from pathlib import Path

import pytest

from reground_jax.convert import locate
from reground_jax.convert.conversion import convert
from reground_jax.model import is_model_directory, read_model
from tests import reference
from tests.converting import WAIT, load, load_without_locks, run_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    reference.write_diffusers(folder, "small")
    return folder


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported everything, and ends them whatever happens."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.converting", "orbax.checkpoint"])
    started = []

    def start(work, *arguments) -> None:
        process = context.Process(target=work, args=arguments)
        process.start()
        started.append(process)

    yield context, start
    for process in started:
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
            process.join()


def test_processes_that_load_a_new_model_at_once_convert_it_once(tmp_path, folder, processes):
    context, start = processes
    results, barrier = context.Queue(), context.Barrier(3)
    for _ in range(3):
        start(load, str(folder), str(tmp_path / "cache"), barrier, results)
    found = [results.get(timeout=WAIT) for _ in range(3)]
    assert [kind for kind, _ in found] == ["done"] * 3, found
    (directory,) = {path for _, (path, _) in found}
    assert sorted(count for _, (_, count) in found) == [0, 0, 1]
    assert is_model_directory(Path(directory))
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left == {Path(directory).name, f".{Path(directory).name}.lock"}


def test_a_later_process_uses_the_existing_model_or_reports_it(tmp_path, folder, processes):
    context, start = processes
    results, started, go_on = context.Queue(), context.Semaphore(0), context.Event()
    cache = tmp_path / "cache"
    place = cache / f"model-{locate._fingerprint(folder)}"
    start(load_without_locks, str(folder), str(cache), started, go_on, results)
    start(run_command, str(folder), str(place), started, go_on, results)
    for _ in range(2):  # both have looked, and found nothing there
        assert started.acquire(timeout=WAIT)
    info = convert(folder, place)
    go_on.set()
    found = [results.get(timeout=WAIT) for _ in range(2)]
    (loaded,) = [value for kind, value in found if value == str(place)]
    ((code, errors),) = [value for _, value in found if value != loaded]
    sentence = f"reground-jax: error: {place} exists now: another process wrote it in the meantime"
    assert code == 2 and errors.strip().splitlines()[-1] == sentence
    assert read_model(place).info["checksum"] == info["checksum"]
    assert {path.name for path in cache.iterdir()} == {place.name, f".{place.name}.lock"}
