"""Studies: what is run, what is run again after a kill, and what the report says of it."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.cli import evaluate, main
from reground_jax.cli.evaluate import command_of, default_arguments
from reground_jax.evaluation.cases import heldout_cases, with_half_the_boxes
from reground_jax.evaluation.plot import Curve, Panel, Point, tradeoff_svg
from reground_jax.evaluation.report import findings, panels, title, write_report
from reground_jax.evaluation.study import (
    CHUNK,
    Condition,
    Study,
    seed_of,
    wiring_series,
    with_scaled_gates,
)
from reground_jax.pipeline import Pipeline
from reground_jax.settings import WIRINGS, Settings
from tests.models import tiny_model
from tests.renders import renders

SETTINGS = Settings(num_steps=20, guidance_scale=4.0, solver="dpmpp_2m")


class Painter:
    """In the place of a pipeline: the colour of an image says how it was asked for."""

    def __init__(self):
        self.asked: list[tuple[str, list[float], list[int]]] = []

    def sweep(self, layouts, *, gammas, wiring, seeds, **keywords):
        assert keywords["num_steps"] == 20 and keywords["output"] == "numpy"
        assert len(layouts) == len(seeds)
        self.asked.append((wiring, list(gammas), list(seeds)))
        red = WIRINGS.index(wiring) / 255
        return {
            gamma: np.stack(
                [np.full((8, 8, 3), (red, gamma * 100 / 255, seed % 256 / 255)) for seed in seeds]
            ).astype(np.float32)
            for gamma in gammas
        }


def score(images, cases):
    """A scorer whose records say which images they are of."""
    return [
        {"id": case.layout.id, "pixel": image[0, 0].tolist()}
        for image, case in zip(images, cases, strict=True)
    ]


def study(out: Path, painter: Painter, count: int = 8, **changes) -> Study:
    heldout = heldout_cases(count)
    cases = {"heldout": heldout, "dropped": with_half_the_boxes(heldout)}
    fields = dict(
        out=out,
        models={"gligen": lambda: painter, "trained-parallel": lambda: painter},
        cases=cases,
        series=wiring_series(["gligen", "trained-parallel"], list(cases), [0.0, 0.3, 1.0]),
        settings=SETTINGS,
        identity={"probes": "1"},
        scorer=score,
    )
    return Study(**fields | changes)


def test_the_study_has_the_conditions_of_the_figure():
    series = wiring_series(["gligen", "other"], ["heldout", "dropped", "nsr1k"], [0.0, 0.3, 1.0])
    assert {(s.model, s.cases, s.wiring): s.gammas for s in series} == {
        ("gligen", "heldout", "sequential"): (0.0, 0.3, 1.0),
        ("gligen", "heldout", "parallel"): (0.0, 0.3, 1.0),
        ("gligen", "dropped", "sequential"): (0.3, 1.0),
        ("gligen", "dropped", "parallel"): (0.3, 1.0),
        ("gligen", "nsr1k", "sequential"): (1.0,),
        ("gligen", "nsr1k", "parallel"): (1.0,),
        ("gligen", "heldout", "no_grounding"): (1.0,),
        ("gligen", "heldout", "no_text"): (1.0,),
        ("gligen", "heldout", "text_first"): (1.0,),
        ("other", "heldout", "parallel"): (0.0, 0.3, 1.0),
    }


def test_records_are_of_the_images_of_their_condition_and_layout(tmp_path):
    ours = study(tmp_path, Painter())
    progress = []
    records = ours.run(lambda done, total: progress.append((done, total)))
    assert len(records) == 2 * 3 + 2 * 2 + 3 + 3
    for condition, rows in records.items():
        cases = ours.cases[condition.cases]
        assert [row["id"] for row in rows] == [case.layout.id for case in cases]
        for row, case in zip(rows, cases, strict=True):
            red, green = WIRINGS.index(condition.wiring), round(100 * condition.gamma)
            assert row["pixel"] == [red, green, seed_of(case) % 256]
    done, totals = zip(*progress, strict=True)
    assert list(done) == sorted(done) and done[-1] == totals[0] == sum(map(len, records.values()))
    shown = ours.images(Condition("gligen", "heldout", "parallel", 0.3), 5)
    assert shown.shape == (5, 8, 8, 3) and (shown[:, 0, 0, 1] == 30).all()


def test_a_killed_study_goes_on_and_makes_nothing_twice(tmp_path):
    class Killed(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Killed

    first, second = Painter(), Painter()
    with pytest.raises(Killed):
        study(tmp_path, first, CHUNK + 10).run(stop)
    records = study(tmp_path, second, CHUNK + 10).run()
    made = [(wiring, tuple(gammas), tuple(seeds)) for wiring, gammas, seeds in first.asked]
    made += [(wiring, tuple(gammas), tuple(seeds)) for wiring, gammas, seeds in second.asked]
    alone = Painter()
    assert records == study(tmp_path / "alone", alone, CHUNK + 10).run()
    assert made == [(wiring, tuple(gammas), tuple(seeds)) for wiring, gammas, seeds in alone.asked]
    third = Painter()
    assert study(tmp_path, third, CHUNK + 10).run() == records and third.asked == []


def test_a_sheet_without_records_is_scored_and_not_made_again(tmp_path):
    records = study(tmp_path, Painter()).run()
    lost = tmp_path / "parts" / "gligen-heldout-parallel-0.3"
    for path in lost.glob("*.json"):
        path.unlink()
    for path in (tmp_path / "parts" / "gligen-heldout-sequential-1").glob("*.*"):
        path.unlink()  # images too: only this gamma is made again
    painter = Painter()
    assert study(tmp_path, painter).run() == records
    assert [(wiring, gammas) for wiring, gammas, _ in painter.asked] == [("sequential", [1.0])]


def test_a_larger_study_takes_over_a_smaller_one(tmp_path):
    study(tmp_path, Painter(), CHUNK).run()
    painter = Painter()
    study(tmp_path, painter, CHUNK + 1).run()
    whole = [seeds for wiring, _, seeds in painter.asked if wiring == "no_text"]
    assert [len(seeds) for seeds in whole] == [1]


def test_a_folder_of_another_study_is_refused(tmp_path):
    study(tmp_path, Painter()).run()
    other = dataclasses.replace(SETTINGS, num_steps=10)
    there = r"another study: probes \"1\" -> \"2\"; settings.num_steps 20 -> 10. Give the old ones"
    with pytest.raises(ValueError, match=there):
        study(tmp_path, Painter(), settings=other, identity={"probes": "2"}).run()


def test_seeds_are_those_of_layouts_and_differ():
    cases = heldout_cases(100)
    assert len({seed_of(case) for case in cases}) == 100
    dropped = with_half_the_boxes(cases)[0]
    whole = next(case for case in cases if case.layout.id == dropped.layout.id)
    assert seed_of(dropped) == seed_of(whole)


def test_scaled_gates_are_scaled_and_nothing_else_is():
    model = tiny_model()
    pipe = Pipeline.from_model(model)
    block = pipe.params["unet"]["down_blocks"][0]["attentions"][0]["block"]
    fuser = block["fuser"]
    fuser["alpha_attn"] = jnp.float32(0.1)
    fuser["alpha_dense"] = jnp.float32(-2.0)
    doubled = with_scaled_gates(pipe, 2.0)
    after = doubled.params["unet"]["down_blocks"][0]["attentions"][0]["block"]
    np.testing.assert_allclose(np.tanh(after["fuser"]["alpha_attn"]), 2 * np.tanh(0.1), rtol=1e-5)
    np.testing.assert_allclose(np.tanh(after["fuser"]["alpha_dense"]), -0.999, rtol=1e-5)
    kernel = ("attn1", "to_out", "kernel")
    before, now = block, after
    for name in kernel:
        before, now = before[name], now[name]
    np.testing.assert_array_equal(before, now)


# ---- the report


def full_record(case, right: bool) -> dict:
    """Everything right, or everything wrong."""
    boxed = len(case.layout.boxes)
    names = {t["category"] for t in case.facts["objects"]}
    hit = int(right)
    return {
        "id": case.layout.id,
        "box": [hit * boxed, boxed],
        "setting": [hit, 1],
        "night": [0, 0],
        "style": [0, 0],
        "attribute": [0, 0],
        "unboxed": [0, 0],
        "count": [hit * len(names), len(names)],
        "detections": [[name, 0.9, hit] for name in names],
        "objects": dict.fromkeys(names, 1),
        "features": [float(boxed), float(right)] * 64,
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict]:
    """A study in which the parallel wiring shows all at gamma 1, and the others nothing."""

    def all_or_nothing(images, cases):
        all_right = (images[0, 0, 0, :2] == (WIRINGS.index("parallel"), 100)).all()
        return [full_record(case, bool(all_right)) for case in cases]

    out = tmp_path_factory.mktemp("study")
    ours = study(out, Painter(), scorer=all_or_nothing)
    return out, write_report(ours, ours.run(), "reground-jax evaluate --out study")


def test_results_hold_every_condition_and_paired_differences(written):
    out, results = written
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    rows = {(r["model"], r["cases"], r["wiring"], r["gamma"]): r for r in results["conditions"]}
    assert len(rows) == 16
    assert rows["gligen", "heldout", "parallel", 1.0]["text"] == (1, 1, 1)
    assert rows["gligen", "heldout", "sequential", 1.0]["ap50"] == (0, 0, 0)
    assert rows["gligen", "heldout", "sequential", 1.0]["night"] is None
    found = results["differences"]
    differences = {(r["model"], r["cases"], r["gamma"]): r["box"] for r in found}
    assert differences == {  # other models, too, are beside the first one's sequential wiring
        ("gligen", "heldout", 0.0): (0, 0, 0),
        ("gligen", "heldout", 0.3): (0, 0, 0),
        ("gligen", "heldout", 1.0): (1, 1, 1),
        ("gligen", "dropped", 0.3): (0, 0, 0),
        ("gligen", "dropped", 1.0): (1, 1, 1),
        ("trained-parallel", "heldout", 0.0): (0, 0, 0),
        ("trained-parallel", "heldout", 0.3): (0, 0, 0),
        ("trained-parallel", "heldout", 1.0): (1, 1, 1),
    }
    equal = {(r["model"], r["cases"], r["gamma"]): r["text"] for r in results["equal_boxes"]}
    assert equal.keys() == differences.keys()
    assert equal["gligen", "heldout", 0.3] == (0, 0, 0)
    assert equal["gligen", "heldout", 1.0] is None  # the sequential wiring fills no box here
    assert [row["images"] for row in results["references"]] == [8, 8]


def test_the_report_says_what_was_found_and_how(written):
    out, _ = written
    text = (out / "report.md").read_text("utf-8")
    assert "`reground-jax evaluate --out study`" in text
    assert (
        "**Held-out layouts.** gligen, parallel at gamma 1, beside the sequential wiring: 100.0 "
        "points more of the text (+100.0 to +100.0) and 100.0 points more of the boxes "
    ) in text
    assert "| gligen | parallel | 1 | 100.0 [100.0, 100.0] |" in text
    dropped = text.split("## COCO-Drop")[1].split("## What the columns are")[0]
    assert "setting" in dropped and "night" not in dropped  # which the records do not ask for
    for name in ("tradeoff.svg", "grid.png"):
        assert f"({name})" in text and (out / name).stat().st_size > 0


def test_the_plot_is_an_svg_with_a_point_per_gamma(written):
    out, _ = written
    root = ElementTree.fromstring((out / "tradeoff.svg").read_text("utf-8"))
    name = "{http://www.w3.org/2000/svg}"
    lines = root.findall(f"{name}polyline")
    counts = [len(line.get("points", "").split()) for line in lines]
    assert counts == [3, 3, 3, 2, 2]  # every box given, and COCO-Drop
    assert len(root.findall(f"{name}circle")) == sum(counts) + 3 + 3  # other wirings, legend


def test_cases_without_a_box_to_score_have_no_panel_and_no_sentence():
    row = {"cases": "heldout", "model": "m", "wiring": "parallel", "gamma": 1.0}
    bare = row | {"box": None, "text": (0.5, 0.4, 0.6)}
    assert panels([bare]) == []
    results = {"differences": [bare], "equal_boxes": [bare | {"ap50": None}]}
    assert findings(results) == []
    full = row | {"cases": "dropped", "box": (0.9, 0.8, 1.0), "text": (0.5, 0.4, 0.6)}
    assert [panel.title for panel in panels([bare, full])] == [title("dropped")]


def test_points_of_the_plot_lie_where_the_axes_say():
    sure = [Point("", (x, x, x), (y, y, y)) for x, y in ((0.0, 10.0), (50.0, 20.0), (100.0, 30.0))]
    curve = Curve("a < b", "#000000", sure)
    root = ElementTree.fromstring(tradeoff_svg([Panel("", [curve])], x_title="x", y_title="y"))
    (line,) = root.findall("{http://www.w3.org/2000/svg}polyline")
    (x0, y0), (x1, y1), (x2, y2) = (
        map(float, pair.split(",")) for pair in line.get("points", "").split()
    )
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and x0 < x2  # rounded to 0.1
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11) and y0 > y2  # up is smaller
    alone = Curve("one", "#000000", sure[:1])  # axes without extent would divide by zero
    assert "<circle" in tradeoff_svg([Panel("", [alone])], x_title="x", y_title="y")
    with pytest.raises(ValueError, match="there is nothing to plot"):
        tradeoff_svg([Panel("", [])], x_title="x", y_title="y")


def test_a_point_off_the_axes_says_where_it_is_and_no_label_covers_another():
    places = {"a": 0.0, "b": 99.0, "c": 100.0}
    line = [Point(name, (x, x, x), (80.0, 80.0, 80.0)) for name, x in places.items()]
    low = Curve("low", "#000000", [Point("low", (50.0, 50.0, 50.0), (12.0, 12.0, 12.0))])
    panels = [Panel("one", [Curve("line", "#000000", line), low]), Panel("two", [low])]
    svg = tradeoff_svg(panels, x_title="x", y_title="y")
    assert svg.count(">low ↓ 12 %<") == 2 and ">12<" not in svg
    assert ">a<" in svg and ">c<" in svg and ">b<" not in svg
    assert ">line<" in svg and ">low<" not in svg  # in the legend: what no label names


def test_a_point_alone_widens_the_axis_of_boxes():
    """Where the wirings are measured at large gammas only, no grounding is far to the left."""
    sure = [Point("", (x, x, x), (80.0, 80.0, 80.0)) for x in (70.0, 90.0)]
    line = Curve("line", "#000000", sure)
    left = Curve("left", "#123456", [Point("left", (10.0, 10.0, 10.0), (80.0, 80.0, 80.0))])
    svg = tradeoff_svg([Panel("", [line, left])], x_title="x", y_title="y")
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    (path,) = root.findall(f"{name}polyline")
    (x0, _), (x1, _) = (map(float, pair.split(",")) for pair in path.get("points", "").split())
    (alone,) = (c for c in root.findall(f"{name}circle") if c.get("fill") == "#123456")
    assert (x0 - float(alone.get("cx", 0))) / (x1 - x0) == pytest.approx(3, abs=0.01)


# ---- the command


def test_the_command_of_a_report_leaves_out_what_is_default():
    arguments = default_arguments()
    arguments.gammas, arguments.rich_phrases, arguments.out = "0,1", True, "my study"
    assert command_of(arguments) == (
        "reground-jax evaluate --gammas 0,1 --rich-phrases --out 'my study'"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gammas", "0,2"], "gamma is 2.0: give a fraction of the steps in 0..1"),
        (["--layouts", "5000"], "5000 layouts are asked for: the held-out set has 1 to 1000"),
        (["--layouts", "many"], "--layouts is many: give a whole number, at least 8"),
        (["--gate-scale", "0"], "--gate-scale is 0: give a number above 0"),
        (["--solver", "plsm"], "solver 'plsm' is unknown: did you mean 'plms'?"),
    ],
)
def test_bad_requests_are_one_sentence(capsys, tmp_path, tiny_model_dir, options, message):
    argv = ["evaluate", "--model", str(tiny_model_dir), "--out", str(tmp_path / "out")]
    assert main([*argv, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and f"error: {message}" in printed.err
    assert not (tmp_path / "out").exists()


class Renderer:
    """Draws the renders of the first layouts whatever the wiring; without boxes, upside down."""

    def sweep(self, layouts, *, gammas, **keywords):
        images, cases = renders()
        rows = {case.layout.id: row for row, case in enumerate(cases)}
        drawn = images[[rows[layout.id] for layout in layouts]].astype(np.float32) / 255
        return {gamma: drawn if gamma >= 0.5 else drawn[:, ::-1] for gamma in gammas}


def test_the_command_measures_what_a_model_draws(capsys, monkeypatch, tmp_path, tiny_model_dir):
    monkeypatch.setattr(evaluate, "load", lambda *_, **__: Renderer())
    argv = ["evaluate", "--model", str(tiny_model_dir), "--layouts", "32", "--gammas", "1,0,1"]
    out = tmp_path / "out"
    assert main([*argv, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.md'}\n"
    rows = json.loads((out / "results.json").read_text())["conditions"]
    assert len(rows) == 2 * 2 + 3 + 2  # nothing is dropped at gamma 0, and there is one model
    for row in rows:
        right, upside_down = row["gamma"] == 1, row["gamma"] == 0
        assert right and row["box"][0] > 0.9 and row["ap50"][0] > 0.8 or upside_down
        assert right or row["box"][0] < 0.6 and row["ap50"][0] < 0.5


@pytest.mark.slow
def test_the_command_measures_a_real_pipeline(tmp_path, tiny_model_dir):
    argv = ["evaluate", "--model", str(tiny_model_dir), "--layouts", "8", "--gammas", "0,1"]
    out = tmp_path / "out"
    assert main([*argv, "--steps", "1", "--batch-size", "8", "--no-cache", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["num_steps"] == 1
    # Without fusers both wirings are one; images of noise show none of the layouts.
    zero = [r for r in results["conditions"] if r["gamma"] == 0 and r["cases"] == "heldout"]
    assert zero[0]["text"] == zero[1]["text"] and zero[0]["box"][0] < 0.5
