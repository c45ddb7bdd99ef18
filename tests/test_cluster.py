"""The files in examples/cluster: schemas, and the sbatch file run with a stand-in for srun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.batch_cases import files, layout, write_lines
from tests.processes import ROOT, finish

CLUSTER = ROOT / "examples" / "cluster"
SBATCH = CLUSTER / "batch.sbatch"
MANIFESTS = sorted(CLUSTER.glob("*.yaml"))
# Starts the tasks of a step side by side, with the variables by which they know their share.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
    tasks+=($!)
done
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit $status
"""
PROGRAM = """#!/usr/bin/env bash
exec {python} -c 'import sys; from reground_jax.cli import main; sys.exit(main())' "$@"
"""


def program(name: str) -> str:
    """The path of a program beside this Python or on the PATH; skips without it."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=folders)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_the_schema_of_kubernetes(path):
    validate = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    kinds = []
    for resource in yaml.safe_load_all(path.read_text("utf-8")):
        validate.validate(resource, validate.latest_version(), strict=True)
        kinds.append(resource["kind"])
    assert kinds[-1] == "Job"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_call_the_command_with_options_that_it_has(path):
    from reground_jax.batch.hosts import Share, find_share
    from reground_jax.cli import build_parser

    yaml = pytest.importorskip("yaml")
    *_, job = yaml.safe_load_all(path.read_text("utf-8"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = build_parser().parse_args(container["args"])
    assert container["command"] == ["reground-jax"] and arguments.out.startswith("gs://")
    count = job["spec"]["completions"]
    given = {entry["name"]: entry["value"] for entry in container.get("env", ())}
    environment = given | {"JOB_COMPLETION_INDEX": "1"}
    if "subdomain" in pod:  # a slice of several hosts, which jax.distributed numbers
        environment["TPU_WORKER_HOSTNAMES"] = ",".join("abcd"[:count])
        assert find_share(None, None, environment) == Share(0, 1, "alone")
    else:
        assert find_share(None, None, environment) == Share(1, count, "Kubernetes")


def test_the_shell_script_is_clean():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    subprocess.run([program("shellcheck"), SBATCH], check=True)


def test_the_dockerfile_is_clean():
    subprocess.run([program("hadolint"), ROOT / "Dockerfile"], check=True)


def test_two_tasks_of_the_sbatch_file_make_the_bytes_of_one(start, tmp_path):
    """Its own command lines, by the built-in model."""
    program("bash")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("reground-jax", PROGRAM.format(python=sys.executable))):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    lines = write_lines(tmp_path / "layouts.jsonl", [layout(i) for i in range(4)])
    made = {}
    for tasks in ("1", "2"):
        out = tmp_path / tasks
        arguments = [str(lines), "emoji", str(out), "--unit-lines", "2", "--batch-size", "2"]
        environment = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "SLURM_NTASKS": tasks,
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        code, errors = finish(
            start(["bash", str(SBATCH), *arguments, "--steps", "4"], **environment)
        )
        assert code == 0, errors
        if tasks == "2":
            assert "share 0 of 2 (by SLURM)" in errors and "share 1 of 2 (by SLURM)" in errors
        made[tasks] = files(out)
    assert made["1"] == made["2"] and made["1"]
