"""Which process makes which share of a `batch` run: hosts, leases, TPU slices."""

import json
import threading
from types import SimpleNamespace

import pytest

from reground_jax.batch import hosts, lock
from reground_jax.batch.hosts import Share, find_share
from reground_jax.batch.lock import HEARTBEAT, LAPSE, Lease
from reground_jax.batch.store import open_store
from reground_jax.batch.verify import verify
from tests.batch_cases import files, generate

PATIENCE = 120  # seconds to wait for something before giving up


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    found = SimpleNamespace(now=1e9)
    monkeypatch.setattr(lock, "time", SimpleNamespace(time=lambda: found.now))
    return found


def holder(memory) -> str:
    return json.loads(memory.cat_file("/lease"))["holder"]


def test_a_lease_is_refused_while_it_is_renewed_and_lapses_without(memory, clock):
    first, second = Lease(memory, "/lease", "process 1 on a"), Lease(memory, "/lease", "2 on b")
    first.take()
    for _ in range(10):
        clock.now += HEARTBEAT
        first.renew()
    clock.now += LAPSE - 20
    with pytest.raises(ValueError, match="process 1 on a holds /lease.*expires in 20 s"):
        second.take()
    clock.now += 20
    second.take()
    assert holder(memory) == "2 on b"


def test_a_process_that_was_away_leaves_the_lease_to_its_new_holder(memory, clock):
    first, second = Lease(memory, "/lease", "1"), Lease(memory, "/lease", "1")  # as in containers
    first.take()
    clock.now += LAPSE
    second.take()
    signed = memory.cat_file("/lease")
    clock.now += 1
    first.renew()
    assert memory.cat_file("/lease") == signed
    first.give_back()
    assert memory.exists("/lease")
    second.give_back()
    assert not memory.exists("/lease")


def test_a_lease_is_renewed_by_itself_and_given_back(memory, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    renewed = threading.Event()

    class Watched(Lease):
        def renew(self) -> None:
            super().renew()
            renewed.set()

    monkeypatch.setattr(lock, "Lease", Watched)
    with lock.lease(memory, "/lease", "process 1 on a"):
        assert renewed.wait(PATIENCE)
        assert holder(memory) == "process 1 on a"
    assert not memory.exists("/lease")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"5", b'{"time": "now"}', b'{"time": 1e9}', b"[" * 100_000, b"\xff"]
)
def test_a_damaged_lease_counts_for_nothing(memory, clock, content):
    memory.pipe_file("/lease", content)
    Lease(memory, "/lease", "process 1 on a").take()
    assert holder(memory) == "process 1 on a"


@pytest.mark.parametrize(
    "environment",
    [
        {"TPU_WORKER_HOSTNAMES": "a,b", "JOB_COMPLETION_INDEX": "1"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "2"},
        {"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"},
        {"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a", "JOB_COMPLETION_INDEX": "0"},
    ],
)
def test_hosts_of_tpu_slices_are_left_to_jax_distributed(environment):
    """For "alone", `start_distributed` starts it.

    The names are those in jax 0.10.2's cloud_tpu_cluster.py; on Google Kubernetes Engine a slice is
    an Indexed Job.
    """
    assert find_share(None, None, environment) == Share(0, 1, "alone")
    assert find_share(1, 3, environment) == Share(1, 3, "options")
    with pytest.raises(ValueError, match="--host-count is given on a TPU slice"):
        find_share(None, 2, environment)


def test_single_hosts_with_a_tpu_are_numbered_by_their_job():
    environment = {
        "TPU_WORKER_HOSTNAMES": "a",
        "MEGASCALE_NUM_SLICES": "1",
        "JOB_COMPLETION_INDEX": "1",
        "JOB_COMPLETIONS": "3",
    }
    assert find_share(None, None, environment) == Share(1, 3, "Kubernetes")


@pytest.mark.parametrize("chips", [[], ["accel0"], ["vfio/0"], ["vfio/vfio"]])
def test_a_host_has_a_tpu_only_if_there_are_chips_and_their_library(chips, tmp_path, monkeypatch):
    """libtpu without a chip is there to compile; `jax.distributed` would wait for a cluster."""
    for name in chips:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: name)
    assert hosts.has_tpu(tmp_path) == (chips in (["accel0"], ["vfio/0"]))
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    assert not hosts.has_tpu(tmp_path)


def test_a_variable_that_is_no_number_is_named():
    environment = {"JOB_COMPLETION_INDEX": "first", "JOB_COMPLETIONS": "3"}
    with pytest.raises(ValueError, match="JOB_COMPLETION_INDEX is 'first', which is not a number"):
        find_share(None, None, environment)


def test_hosts_do_their_shares_and_any_number_takes_over_what_is_missing(ten, tmp_path, stub):
    out, whole = tmp_path / "out", tmp_path / "whole"
    generate(ten, whole)
    assert generate(ten, out, "--host-index", "1", "--host-count", "2") == 0
    assert sorted(path.name for path in (out / "images").iterdir()) == ["000000001"]
    assert generate(ten, out) == 0  # one host for what two began
    assert files(out) == files(whole)
    assert len(verify(open_store(str(out))).problems) == 0


@pytest.mark.parametrize(
    "options, environment, expected",
    [
        ((None, None), {}, (0, 1, "alone")),
        ((2, 8), {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, (2, 8, "options")),
        ((None, None), {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, (1, 4, "SLURM")),
        ((None, None), {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, "alone")),  # no srun
        ((None, 8), {"JOB_COMPLETION_INDEX": "5"}, (5, 8, "Kubernetes")),
        ((None, None), {"JOB_COMPLETION_INDEX": "5", "JOB_COMPLETIONS": "6"}, (5, 6, "Kubernetes")),
    ],
)
def test_a_share_comes_from_options_or_the_environment(options, environment, expected):
    assert find_share(options[0], options[1], environment) == Share(*expected)


@pytest.mark.parametrize(
    "options, environment, reason",
    [
        ((0, None), {}, "go together"),
        ((None, 4), {}, "go together"),
        ((4, 4), {}, "host index is 4 of 4"),
        ((None, None), {"JOB_COMPLETION_INDEX": "5"}, "give --host-count"),
    ],
)
def test_half_a_share_is_an_error(options, environment, reason):
    with pytest.raises(ValueError, match=reason):
        find_share(options[0], options[1], environment)


def test_shares_cover_every_unit_once():
    units = [unit for index in range(3) for unit in Share(index, 3, "options").of(range(10))]
    assert sorted(units) == list(range(10))
