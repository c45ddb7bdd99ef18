"""The batch generator as real processes that are killed, started twice, and run out of disk."""

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reground_jax.batch.manifest import read_manifests
from reground_jax.batch.store import open_store
from reground_jax.batch.verify import verify
from tests.batch_cases import DATA, files, layout, metadata, write_lines
from tests.processes import PATIENCE, Start, finish, starting, wait_for, with_devices

STUB = [sys.executable, "-m", "tests.batch_stub"]
SMALL = ["--unit-lines", "4", "--batch-size", "2"]
NEVER = "/nowhere/at/all"  # a file for which a held run waits in vain


def stub(seconds: float, layouts: Path, out: Path, *options: str) -> list[str]:
    return [*STUB, str(seconds), "batch", str(layouts), "--out", str(out), *SMALL, *options]


def check_whole(out: Path, undisturbed: dict[str, str]) -> None:
    """No id lost or duplicated, no corrupt file, identical bytes, nothing left over."""
    report = verify(open_store(str(out)))
    assert not report.problems
    assert files(out) == undisturbed
    assert not list(out.rglob(".*.part"))


def finished_units(out: Path) -> int:
    return len(read_manifests(open_store(str(out)))[0])


def kill_and_resume(
    start: Start, command: list[str], out: Path, kills: int, **environment: str
) -> None:
    """Kills a run `kills` times, each a random moment after a random number of new units.

    A run that would get further than 5 units before it is killed waits there.
    """
    dice = random.Random(0)
    for _ in range(kills):
        process = start(command, HOLD=f"5:{NEVER}", **environment)
        goal = finished_units(out) + dice.randint(0, 2)
        wait_for(process, lambda goal=goal: finished_units(out) >= goal)
        time.sleep(dice.uniform(0, 0.3))
        assert process.poll() is None, "the run is too short for so many kills"
        process.kill()
        finish(process)
    code, errors = finish(start(command, **environment))
    assert code == 0, errors


@pytest.fixture
def forty(tmp_path) -> Path:
    return write_lines(tmp_path / "in.jsonl", [layout(i) for i in range(40)])


@pytest.mark.parametrize("form", ["imagefolder", "webdataset"])
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(start, tmp_path, form):
    lines = write_lines(tmp_path / "in.jsonl", [layout(i) for i in range(200)])
    code, errors = finish(start(stub(0, lines, tmp_path / "undisturbed", "--format", form)))
    assert code == 0, errors
    out = tmp_path / "out"
    kill_and_resume(start, stub(0.03, lines, out, "--format", form), out, 5)
    check_whole(out, files(tmp_path / "undisturbed"))


def test_sigterm_ends_a_run_cleanly_and_the_same_command_goes_on(start, forty, tmp_path):
    out, release = tmp_path / "out", tmp_path / "release"
    process = start(stub(0.05, forty, out), HOLD=f"1:{release}")
    wait_for(process, lambda: finished_units(out) >= 1)
    process.send_signal(signal.SIGTERM)
    release.touch()
    code, errors = finish(process)
    assert code == 128 + signal.SIGTERM
    assert "SIGTERM: finishing what is on the device" in errors
    assert "stopped: run the same command again to resume" in errors
    done = len(metadata(out))
    # A unit of 4, and at most the 5 others that were in progress.
    assert 4 <= done <= 24 and not list(out.rglob(".*.part"))
    code, errors = finish(start(stub(0, forty, out)))
    assert code == 0 and f"generating {40 - done} images (" in errors
    assert len(metadata(out)) == 40


def test_a_second_process_on_the_same_share_is_refused_and_a_killed_ones_lock_is_free(
    start, forty, tmp_path
):
    out = tmp_path / "out"
    first = start(stub(0, forty, out), HOLD=f"1:{NEVER}")
    wait_for(first, lambda: finished_units(out) >= 1)
    code, errors = finish(start(stub(0, forty, out)))
    assert code == 2
    assert f"another process is working on this share of the output (process {first.pid}" in errors
    code, errors = finish(start(stub(0, forty, out, "--host-index", "1", "--host-count", "2")))
    assert code == 0, errors  # another share's
    first.kill()
    finish(first)
    code, errors = finish(start(stub(0, forty, out)))
    assert code == 0, errors
    assert len(metadata(out)) == 40


def in_namespace(mount: str, out: Path, command: list[str]) -> list[str]:
    """The command with its own file system on `out`. Skips the test if that is impossible."""
    wrapped = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    out.mkdir(exist_ok=True)
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare` to mount a file system with")
    probe = subprocess.run([*wrapped, mount, "sh", str(out)], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"file systems cannot be mounted here: {probe.stderr.strip()}")
    return [*wrapped, f'{mount} && shift && exec "$@"', "sh", str(out), *command]


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(start, forty, tmp_path):
    out = tmp_path / "out"
    # The run, then room made for it, and the run again; each of the 40 images takes a page.
    script = '"$@"; echo code $?; mount -o remount,size=8m "$0" && "$@"; echo code $?; ls -R "$0"'
    both = ["sh", "-c", script, str(out), *stub(0, forty, out)]
    process = start(in_namespace("mount -t tmpfs -o size=120k none $1", out, both))
    listing, errors = process.communicate(timeout=PATIENCE)
    assert "No space left on device" in errors and str(out) in errors
    assert "finished units are kept: when there is room" in errors
    assert [line for line in listing.splitlines() if line.startswith("code")] == [
        "code 1",
        "code 0",
    ]
    assert sum(line.endswith(".png") for line in listing.splitlines()) == 40


def test_a_read_only_output_is_named_before_anything_is_made(start, forty, tmp_path):
    out = tmp_path / "out"
    process = start(in_namespace("mount -t tmpfs -o ro none $1", out, stub(0, forty, out)))
    code, errors = finish(process)
    assert code == 2
    assert errors.splitlines()[-1].startswith(f"reground-jax: error: {out}/")
    assert errors.splitlines()[-1].endswith("Read-only file system")


PEAK = """
import pathlib, re, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module("tests.batch_stub", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
# ru_maxrss would be that of the process that started this one, if larger.
status = pathlib.Path("/proc/self/status").read_text()
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]))
"""


def peak_of(start: Start, lines: int, folder: Path) -> tuple[int, str]:
    """Peak memory in bytes of a run of so many lines, and its messages."""
    source = folder / f"{lines}.jsonl"
    with source.open("w") as file:
        file.writelines(json.dumps(layout(number)) + "\n" for number in range(lines))
    arguments = [
        "0",
        "batch",
        str(source),
        "--out",
        str(folder / str(lines)),
        "--format",
        "webdataset",
    ]
    process = start([sys.executable, "-c", PEAK, "x", *arguments])
    printed, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert f"{lines} images, " in errors
    return int(printed.splitlines()[-1]), errors


@pytest.mark.parametrize(
    "few, many", [(1000, 8000), pytest.param(10_000, 100_000, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_number_of_layouts(start, few, many, tmp_path):
    small, _ = peak_of(start, few, tmp_path)
    large, said = peak_of(start, many, tmp_path)
    print(f"{many} layouts: {large / 2**20:.0f} MiB ({few}: {small / 2**20:.0f} MiB)\n{said}")
    # The index takes 16 bytes per line, and sorting it as much again; the input has 110 per line.
    assert large - small < 64 * many + (12 << 20)


# ---- with the model

MODEL = [sys.executable, "-m", "tests.batch_hold"]
FOUR = with_devices(4)


def tiny(model: Path, layouts: Path, out: Path, *options: str) -> list[str]:
    return [
        *MODEL, "batch", str(layouts), "--out", str(out), "--model", str(model), *SMALL,
        "--steps", "2", "--solver", "ddim", *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, str]:
    """Where this file's processes keep compiled programs."""
    folder = str(tmp_path_factory.mktemp("xla"))
    return {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
    }


@pytest.fixture(scope="module")
def undisturbed(tiny_model_dir, compiled, tmp_path_factory) -> tuple[Path, Path]:
    """(40 layouts, what one device makes of them undisturbed)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    lines = write_lines(folder / "in.jsonl", [layout(i, seed=i) for i in range(40)])
    with starting() as start:
        code, errors = finish(start(tiny(tiny_model_dir, lines, folder / "out"), **compiled))
    assert code == 0, errors
    return lines, folder / "out"


@pytest.mark.parametrize(
    "kills", [pytest.param(kills, marks=pytest.mark.slow) for kills in (5, 50)]
)
def test_a_run_of_the_model_survives_kills(start, kills, tiny_model_dir, compiled, tmp_path):
    lines = write_lines(tmp_path / "in.jsonl", [layout(i) for i in range(32 * kills)])
    code, errors = finish(start(tiny(tiny_model_dir, lines, tmp_path / "once"), **compiled))
    assert code == 0, errors
    out = tmp_path / "out"
    kill_and_resume(start, tiny(tiny_model_dir, lines, out), out, kills, **compiled)
    check_whole(out, files(tmp_path / "once"))


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_of_two_hosts_is_killed_and_a_later_run_makes_what_is_missing(
    start, victim, undisturbed, tiny_model_dir, compiled, tmp_path
):
    lines, once = undisturbed
    out = tmp_path / "out"

    def host(index: int) -> subprocess.Popen:
        share = ["--host-index", str(index), "--host-count", "2"]
        command = tiny(tiny_model_dir, lines, out, *share)
        return start(command, XLA_FLAGS=FOUR, **compiled)

    hosts = [host(0), host(1)]
    wait_for(hosts[victim], lambda: any(out.glob(f"manifests/host-000{victim}-*")))
    hosts[victim].kill()
    finish(hosts[victim])
    code, errors = finish(hosts[1 - victim])
    assert code == 0, errors
    assert {int(path.name) % 2 for path in out.glob("images/0*")} >= {1 - victim}
    code, errors = finish(start(tiny(tiny_model_dir, lines, out), XLA_FLAGS=FOUR, **compiled))
    assert code == 0, errors
    check_whole(out, files(once))  # one device or four, one host or two: the same bytes


@pytest.mark.slow
def test_a_soak_of_the_shipped_model_on_four_devices(start, compiled, tmp_path):
    """2,286 images of GPT-4's real layouts, stopped once in the middle."""
    command = [
        *MODEL, "batch", str(DATA / "nsr1k" / "gpt4.counting.all.json"),
        "--out", str(tmp_path / "out"), "--seeds", "0", "1", "2", "--format", "webdataset",
        "--steps", "10", "--solver", "dpmpp_2m", "--guidance-scale", "4", "--batch-size", "8",
        "--unit-lines", "64", "--preview", "16",
    ]  # fmt: skip
    release = tmp_path / "release"
    process = start(command, XLA_FLAGS=FOUR, HOLD=f"6:{release}", **compiled)
    wait_for(process, lambda: finished_units(tmp_path / "out") >= 6)
    process.send_signal(signal.SIGTERM)
    release.touch()
    finish(process)
    before = finished_units(tmp_path / "out")
    code, errors = finish(start(command, XLA_FLAGS=FOUR, **compiled))
    assert code == 0, errors
    print(errors.splitlines()[-1])
    report = verify(open_store(str(tmp_path / "out")))
    assert not report.problems and report.images == 3 * 762
    assert 6 <= before < finished_units(tmp_path / "out")


@pytest.mark.slow
def test_another_batch_size_gives_the_same_images_up_to_rounding(
    start, undisturbed, tiny_model_dir, compiled, tmp_path
):
    lines, once = undisturbed
    command = tiny(tiny_model_dir, lines, tmp_path / "out", "--batch-size", "4")
    code, errors = finish(start(command, **compiled))
    assert code == 0, errors
    furthest = 0
    for path in once.rglob("*.png"):
        with (
            Image.open(path) as one,
            Image.open(tmp_path / "out" / path.relative_to(once)) as other,
        ):
            distance = np.abs(np.asarray(one, int) - np.asarray(other, int)).max()
            furthest = max(furthest, int(distance))
    print(f"images of another batch size differ by at most {furthest} of 255")
    assert furthest <= 1  # a value that lies between two levels


def test_two_hosts_of_jax_distributed_do_their_shares(
    start, undisturbed, tiny_model_dir, compiled, tmp_path
):
    lines, once = undisturbed
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    hosts = []
    for index in range(2):
        share = ["--host-index", str(index), "--host-count", "2"]
        coordinator = ["--coordinator", f"localhost:{port}"]
        command = tiny(tiny_model_dir, lines, tmp_path / "out", *share, *coordinator)
        hosts.append(start(command, XLA_FLAGS=FOUR, **compiled))
    for process in hosts:
        code, errors = finish(process)
        assert code == 0, errors
        assert "of 2 (by jax.distributed)" in errors and "4 x cpu" in errors
    check_whole(tmp_path / "out", files(once))


def test_a_ray_actor_is_killed_and_its_units_are_made_again(start, tmp_path):
    pytest.importorskip("ray")
    lines = write_lines(tmp_path / "in.jsonl", [layout(i) for i in range(128)])  # 32 units
    code, errors = finish(start(stub(0, lines, tmp_path / "once")))
    assert code == 0, errors
    (tmp_path / "pids").mkdir()
    program = [sys.executable, "-m", "tests.batch_ray", str(tmp_path / "pids")]
    options = ["--out", str(tmp_path / "out"), *SMALL, "--engine", "ray", "--actors", "2"]
    code, errors = finish(
        start([*program, "batch", str(lines), *options], RAY_USAGE_STATS_ENABLED="0")
    )
    assert code == 0, errors
    actors = [path.name for path in (tmp_path / "pids").iterdir()]
    assert len(actors) >= 2 and sum(name.endswith("-killed") for name in actors) == 1
    assert not verify(open_store(str(tmp_path / "out"))).problems
    assert files(tmp_path / "out") == files(tmp_path / "once")
