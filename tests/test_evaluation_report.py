"""What a report says about a study: numbers, sentences, tables and figures."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from reground_jax.emoji.data import TITLES
from reground_jax.emoji.probes import Probes
from reground_jax.emoji.scorer import TRADE_OFF, emoji_scorer
from reground_jax.evaluation.reports.figures import panels
from reground_jax.evaluation.reports.report import markdown, write_report
from reground_jax.evaluation.reports.sentences import findings
from reground_jax.evaluation.reports.tradeoff import Curve, Panel, Point, tradeoff_svg
from reground_jax.settings import WIRINGS
from tests.studies import SETTINGS, Painter, brightness, emoji_data, ran, red_of, scorer, study


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

    def liked(images, cases):
        return [{"liked": float(image[0, 0, 0])} for image in images]

    out = tmp_path_factory.mktemp("study")
    scorers = [
        dataclasses.replace(emoji_scorer(Probes.load()), score=all_or_nothing),
        scorer("pixels", metrics=(brightness(),)),  # another one, independent of the first
        scorer("fans", liked, metrics=(), preference="liked"),
    ]
    ours = ran(study(out, Painter(), scorers=scorers))
    return out, write_report(ours, "reground-jax evaluate --out study")


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
    assert (
        "gligen, gamma 1: fans prefers the parallel wiring's image to the sequential one's by 73.1 "
        "% [73.1, 73.1] (mean of the sigmoid of the difference), and in 100.0 % [100.0, 100.0] of"
    ) in text  # 1 - 0, the wirings' numbers
    for name in ("tradeoff.svg", "differences.svg", "grid.png", "extremes.png"):
        assert f"({name})" in text and (out / name).stat().st_size > 0


def test_differences_are_drawn_with_their_intervals(written):
    out, results = written
    root = ElementTree.fromstring((out / "differences.svg").read_text("utf-8"))
    main = ("box", "ap50", "text")
    rows = [
        r for r in results["differences"] if r["method"] == "parallel" and r["model"] == "gligen"
    ]
    drawn = [row[name] for row in rows for name in main if row[name] is not None]
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == len(drawn) > 10


def test_shares_of_the_swing_are_of_the_sequential_wirings_change_over_gamma(tmp_path):
    """From gamma 1 to 0.1 the sequential wiring gains 0.4 of the text and loses 0.5 of the boxes;
    at gamma 1, the parallel wiring gains 0.2 and loses 0.1."""
    shown = {(0, 100): (0.9, 0.3), (0, 10): (0.4, 0.7), (1, 100): (0.8, 0.5)}

    def score(images, cases):
        boxes, text = shown.get(tuple(images[0, 0, 0, :2].tolist()), (0, 0))
        wrong = [full_record(case, False) | {"count": [0, 0]} for case in cases]
        return [r | {"box": [10 * boxes, 10], "setting": [10 * text, 10]} for r in wrong]

    data = emoji_data(8)
    titled = dataclasses.replace(data.sets[0], paper="coco2014")
    ours = study(
        tmp_path, Painter(), data=dataclasses.replace(data, sets=(titled,)), gammas=[0.1, 1.0],
        scorers=[scorer(score=score)],
    )  # fmt: skip
    results = write_report(ran(ours), "")
    (row,) = [row for row in results["shares"] if row["model"] == "gligen"]
    assert row["swing_to"] == 0.1 and row["gain"] == pytest.approx((0.5,) * 3)
    assert row["loss"] == pytest.approx((0.2,) * 3)
    text = markdown(results, ours, [])
    assert "gains 50.0 % [50.0, 50.0] in share of text and loses 20.0 %" in text
    assert "The paper says 70.25 and 3.31 %." in text
    assert "| sequential | 0.1 | 70.0 [70.0, 70.0] | 31.65 | 40.0 [40.0, 40.0] | 22.75 |" in text
    assert "compare signs, differences and shares, not values" in text


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
    results = write_report(ran(ours), "reground-jax evaluate")
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
