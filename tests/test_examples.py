"""The notebooks run, and what is committed of them is small and without errors."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import jax
import pytest

from tests.marks import slow
from tests.processes import ROOT, finish

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MOST = 1_500_000  # bytes of the whole folder


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text("utf-8"))["cells"]


def outputs(path: Path) -> list[dict]:
    return [output for cell in cells(path) for output in cell.get("outputs", ())]


@pytest.mark.parametrize(
    "path",
    # Training and evaluation have tests of their own commands.
    [slow(p) if p.stem in ("04_train_fusers", "05_evaluate") else p for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebooks_run(path, start, tmp_path):
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[test]'")
    # As `make notebooks` runs them, compiled as for users, not as for tests; but what one notebook
    # compiles, the others find.
    code, errors = finish(
        start(
            [sys.executable, "examples/execute.py", str(path), "--into", str(tmp_path)],
            XLA_FLAGS="",
            JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1",
        )
    )
    assert code == 0, errors
    done = tmp_path / path.name
    assert not [output for output in outputs(done) if output["output_type"] == "error"]
    assert len(outputs(done)) >= len(cells(done)) / 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_with_outputs(path):
    found = outputs(path)
    assert any("image/png" in output.get("data", {}) for output in found), "make notebooks"
    assert not [output for output in found if output["output_type"] == "error"]
    text = json.dumps(found)
    assert not [
        place for place in (os.sep + "tmp" + os.sep, str(ROOT), str(Path.home())) if place in text
    ]
    first, last = cells(path)[0]["source"], cells(path)[-1]["source"]
    assert "".join(first).startswith("# ") and "This notebook" in "".join(first)
    assert "## With a real checkpoint" in "".join(last)
    assert all(word in "".join(last) for word in ("GPU", "TPU VM"))


def test_the_folder_is_small():
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < MOST
