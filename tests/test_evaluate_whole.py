"""`reground-jax evaluate --data coco` as a whole, on the built-in world in COCO's form.

A tiny model makes the images, every scorer has random weights, and renders are the photographs.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from reground_jax.cli import evaluate, main
from reground_jax.evaluation.data_sets.export import export_coco
from reground_jax.evaluation.studies import study
from tests import detectors
from tests.clip_models import write_clip
from tests.evaluating import evaluated
from tests.renders import renders

COUNT = 4  # layouts


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """All but the scorer of FID."""
    folder = tmp_path_factory.mktemp("world")
    images, cases = renders()
    export_coco(folder / "coco", cases[:COUNT], images[:COUNT])
    write_clip(folder / "clip", "b32")
    write_clip(folder / "pick", "h14")
    categories = json.loads((folder / "coco/instances.json").read_text())["categories"]
    detectors.rt_detr(folder / "detector", [category["name"] for category in categories])
    files = {"annotations": "instances.json", "captions": "captions.json", "photographs": "images"}
    words = [
        word for name, file in files.items() for word in (f"--{name}", f"{folder}/coco/{file}")
    ]
    sources = [f"{name}={folder / name}" for name in ("clip", "pick", "detector")]
    few = ["--gammas", "1", "--wirings", "sequential,parallel", "--steps", "1"]
    scorers = ["--scorers", ",".join(["detector=probe", *sources])]
    return ["--data", "coco", *words, *few, *scorers]


def records(out: Path, scorer: str) -> dict[str, bytes]:
    """The files of a scorer, by unit."""
    (folder,) = (out / "scores").glob(f"{scorer}-*")
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.*")}


def checked(out: Path) -> dict:
    """results.json, whose columns are those of all scorers, in the report, too."""
    results = json.loads((out / "results.json").read_text())
    columns = ("ap50", "ap", "clip", "pick", "detector2.ap50", "detector2.ap")
    photographs = [row for row in results["references"] if row["method"] == "photographs"]
    assert len(results["conditions"]) == 2 and len(photographs) == 1
    for row in (*results["conditions"], *photographs):
        assert row["cases"] == "coco"
        assert all(np.isfinite(row[column]).all() for column in columns)
    assert photographs[0]["ap50"][0] > 0.9  # of the probe, in renders
    assert [row["scorer"] for row in results["preferences"]] == ["pick"]
    report = (out / "report.md").read_text("utf-8")
    assert all(f" {column} |" in report for column in columns) and "photographs" in report
    return results


def test_every_scorer_scores_what_a_model_makes(tmp_path, tiny_model_dir, options, monkeypatch):
    out, names = tmp_path / "out", ("clip", "pick", "detector", "detector2")
    assert evaluated(tiny_model_dir, out, *options) == 0
    checked(out)
    scores = [records(out, name) for name in names]
    report = {name: (out / name).read_bytes() for name in ("results.json", "report.md")}
    # Nothing is made again, and scores that are lost come out the same.
    monkeypatch.setattr(evaluate, "load_pipeline", lambda *_: pytest.fail("a model is loaded"))
    shutil.rmtree(out / "scores")
    assert evaluated(tiny_model_dir, out, *options) == 0
    assert [records(out, name) for name in names] == scores
    # Nothing is scored again.
    monkeypatch.setattr(study, "score_unit", lambda *_: pytest.fail("images are scored"))
    assert evaluated(tiny_model_dir, out, *options) == 0
    assert report == {name: (out / name).read_bytes() for name in report}


@pytest.mark.slow
def test_features_are_stored_and_compared_with_those_of_photographs(
    tmp_path, tiny_model_dir, options, capsys
):
    import torch

    from tests import inception_reference as reference

    with np.load(reference.FILE) as arrays:
        torch.save(reference.state(json.loads(str(arrays["shapes"]))), tmp_path / "fid.pth")
    words = [*options[:-1], f"{options[-1]},fid={tmp_path / 'fid.pth'}"]
    out = tmp_path / "out"
    common = ["--model", str(tiny_model_dir), "--batch-size", "16", "--no-cache", "--out", str(out)]
    assert main(["evaluate", *common, *words]) == 0
    assert f"FID of {COUNT} images means little" in capsys.readouterr().err
    results = checked(out)
    for row in results["conditions"]:
        assert row["fid"] > 0 and np.isfinite(row["kid"])
    stored = list((out / "scores").glob("inception-*/**/*.npz"))
    assert len(stored) == 3  # two wirings and the photographs
    for path in stored:
        with np.load(path) as arrays:
            assert arrays["features"].shape == (COUNT, 2048)
            assert arrays["features"].dtype == np.float16
