"""What a report says about a study: numbers, sentences, tables and figures."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from reground_jax.emoji.cases import TITLES
from reground_jax.emoji.probes import Probes
from reground_jax.emoji.scorer import TRADE_OFF, emoji_scorer
from reground_jax.evaluation.figures import panels
from reground_jax.evaluation.plot import Curve, Panel, Point, tradeoff_svg
from reground_jax.evaluation.report import findings, write_report
from reground_jax.settings import WIRINGS
from tests.studies import SETTINGS, Painter, brightness, red_of, scorer, study


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
    """A study in which the parallel wiring shows everything at gamma 1, and the others nothing."""

    def all_or_nothing(images, cases):
        all_right = (images[0, 0, 0, :2] == (WIRINGS.index("parallel"), 100)).all()
        return [full_record(case, bool(all_right)) for case in cases]

    out = tmp_path_factory.mktemp("study")
    scorers = [
        dataclasses.replace(emoji_scorer(Probes.load()), score=all_or_nothing),
        scorer("pixels", metrics=(brightness(),)),  # another one, independent of the first
    ]
    ours = study(out, Painter(), scorers=scorers)
    return out, write_report(ours, ours.run(), "reground-jax evaluate --out study")


def test_results_hold_every_condition_and_paired_differences(written):
    out, results = written
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    rows = {(r["model"], r["cases"], r["method"], r["gamma"]): r for r in results["conditions"]}
    assert len(rows) == 16
    assert rows["gligen", "heldout", "parallel", 1.0]["text"] == (1, 1, 1)
    assert rows["gligen", "heldout", "sequential", 1.0]["ap50"] == (0, 0, 0)
    assert rows["gligen", "heldout", "sequential", 1.0]["night"] is None
    found = results["differences"]
    differences = {(r["model"], r["cases"], r["gamma"]): r["box"] for r in found}
    assert differences == {  # other models are also compared with the first one's sequential
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
    assert all("brightness" in row for row in found)  # from every scorer that has records
    assert not any("brightness" in row for row in results["references"])


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
    assert "## The probes" in text and "- **brightness**: how bright an image is" in text
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


def test_what_lies_between_the_wirings_is_compared_with_both(tmp_path):
    """Boxes are right in as many layouts as gamma says, and the text in more, by method."""
    share = {"sequential": 0.5, "parallel": 0.6, "coupled:0.5": 0.7, "coupled:down=0": 0.55}
    reds = {red_of(SETTINGS.with_method(method)): value for method, value in share.items()}

    def score(images, cases):
        made = []
        for image, case in zip(images, cases, strict=True):
            red, green, _ = image[0, 0].tolist()
            text = reds.get(red, 0)
            record = {"id": case.layout.id, "box": [10 * green, 1000], "setting": [10 * text, 10]}
            made.append(full_record(case, True) | record | {"count": [0, 0]})
        return made

    ours = study(
        tmp_path,
        Painter(),
        more=["coupled:0.5", "coupled:down=0"],
        scorers=[scorer(score=score)],
    )
    results = write_report(ours, ours.run(), "reground-jax evaluate")
    rows = [row for row in results["equal_boxes"] if row["cases"] == "heldout"]
    found = {(r["method"], r["beside"], r["gamma"]): r["text"] for r in rows if r["gamma"] == 1}
    assert found.keys() == {
        ("parallel", "sequential", 1.0),
        *(("coupled:0.5", end, 1.0) for end in ("sequential", "parallel")),
        *(("coupled:down=0", end, 1.0) for end in ("sequential", "parallel")),
    }
    assert found["coupled:0.5", "sequential", 1.0] == pytest.approx((0.2,) * 3)
    assert found["coupled:down=0", "parallel", 1.0] == pytest.approx((-0.05,) * 3)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert (
        "2 of 4 further points have more of the text than both main wirings, with both intervals "
        "above 0: coupled:0.5 at gamma 0.3, coupled:0.5 at gamma 1."
    ) in text
    assert "Minus the parallel wiring at the same share of boxes, in points." in text
    drawn = ElementTree.fromstring((tmp_path / "tradeoff.svg").read_text("utf-8"))
    lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert len({line.get("stroke") for line in lines}) == 5  # a color for each method, and a model


def test_cases_without_a_box_to_score_have_no_panel_and_no_sentence():
    row = {"cases": "heldout", "model": "m", "method": "parallel", "gamma": 1.0}
    bare = row | {"box": None, "text": (0.5, 0.4, 0.6)}
    assert panels([bare], TRADE_OFF, TITLES) == []
    results = {"differences": [bare], "equal_boxes": [bare | {"ap50": None}]}
    assert findings(results, TRADE_OFF, TITLES) == []
    full = row | {"cases": "dropped", "box": (0.9, 0.8, 1.0), "text": (0.5, 0.4, 0.6)}
    drawn = panels([bare, full], TRADE_OFF, TITLES)
    assert [panel.title for panel in drawn] == [TITLES["dropped"]]


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
    """If the wirings are measured only at large gammas, no grounding is far to the left."""
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
