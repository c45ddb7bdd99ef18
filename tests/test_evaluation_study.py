"""Studies: what is run, what is made again, and what is refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.batch.hosts import Share
from reground_jax.batch.store import open_store
from reground_jax.batch.verify import verify
from reground_jax.emoji.cases import heldout_cases
from reground_jax.evaluation.cases import seed_of, with_half_the_boxes
from reground_jax.evaluation.reports.report import write_report
from reground_jax.evaluation.studies.conditions import Condition, Series, wiring_series
from reground_jax.evaluation.studies.gates import with_scaled_gates
from reground_jax.pipeline import Pipeline
from tests.models import tiny_model
from tests.studies import (
    SETTINGS,
    UNIT,
    Painter,
    all_records,
    brightness,
    emoji_data,
    model,
    pixels,
    ran,
    red_of,
    scorer,
    study,
)


def test_the_study_has_the_conditions_of_the_figure():
    sets = [
        dataclasses.replace(emoji_data(8).sets[0], name=name, reach=reach)
        for name, reach in (("heldout", "all"), ("dropped", "grounded"), ("nsr1k", "largest"))
    ]
    series = wiring_series(["gligen", "other"], sets, [0.0, 0.3, 1.0])
    assert {(s.model, s.cases, s.method): s.gammas for s in series} == {
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
    more = wiring_series(["gligen"], sets, [0.0, 1.0], ["coupled:0.5"])
    assert {(s.cases, s.gammas) for s in more if s.method == "coupled:0.5"} == {
        ("heldout", (1.0,)), ("dropped", (1.0,))
    }  # fmt: skip
    own = wiring_series(["gligen"], sets[:1], [0.0, 1.0], ["coupled:0.5"], [0.5, 1.0])
    assert [s.gammas for s in own if s.method == "coupled:0.5"] == [(0.5, 1.0)]
    few = wiring_series(["gligen"], sets[:1], [0.1, 1.0], wirings=["sequential"])
    assert few == [Series("gligen", "heldout", "sequential", (0.1, 1.0))]
    with_pieces = Series("gligen", "heldout", "coupled:0.3:1/0.7:0", (0.3,))
    assert with_pieces.folder == "gligen-heldout-coupled-0.3-1-0.7-0"  # no folder in a folder


def test_records_are_of_the_images_of_their_condition_and_layout(tmp_path):
    ours = study(tmp_path, Painter(), UNIT + 3, more=["coupled:0.25", "coupled:down=0,mid=0"])
    progress = []
    ours.generate(progress=lambda done, total: progress.append((done, total)))
    ours.score()
    conditions = ours.conditions()
    assert len(conditions) == 2 * 3 + 2 * 2 + 3 + 3 + 2 * 2 * 2
    for condition, found in all_records(ours).items():
        rows, cases = found["probes"], ours.data.of(condition.cases).used
        assert [row["id"] for row in rows] == [case.layout.id for case in cases]
        for row, case in zip(rows, cases, strict=True):
            red = red_of(SETTINGS.with_method(condition.method))
            green = round(100 * condition.gamma)
            assert row["pixel"] == [red, green, seed_of(case) % 256]
    done, totals = zip(*progress, strict=True)
    assert list(done) == sorted(done) and done[-1] == totals[0]
    shown = ours.pictures(Condition("gligen", "heldout", "parallel", 0.3), [12, 0, 5])
    seeds = [seed_of(ours.data.sets[0].used[line]) % 256 for line in (12, 0, 5)]
    assert [image[0, 0].tolist() for image in shown] == [[1, 30, seed] for seed in seeds]


def test_its_images_are_an_output_of_batch(tmp_path):
    ran(study(tmp_path, Painter()))
    store = open_store(f"{tmp_path}/images/gligen-heldout-parallel/seed-0/0,0.3,1")
    report = verify(store)
    assert report.images == 8 * 3 and report.expected_images == 40 * 3
    assert {str(problem).partition(": ")[2] for problem in report.problems} == {
        "it has not been made yet",
        "its ids do not match its lines: 24 images, 30 expected",
    }


def test_a_larger_study_goes_on_with_a_smaller_one_and_a_smaller_one_reads_it(tmp_path):
    small = all_records(ran(study(tmp_path, Painter(), UNIT + 3)))
    painter = Painter()
    large = ran(study(tmp_path, painter, 2 * UNIT + 1))
    whole = [seeds for wiring, _, seeds in painter.asked if wiring == "no_text"]
    assert sum(map(len, whole)) == UNIT + 1  # the last unit of the smaller one is made again
    assert all_records(large) == all_records(
        ran(study(tmp_path / "alone", Painter(), 2 * UNIT + 1))
    )
    painter = Painter()
    again = ran(study(tmp_path, painter, UNIT + 3))
    assert painter.asked == [] and all_records(again) == small


def test_more_gammas_are_made_beside_those_that_there_are(tmp_path):
    first = all_records(ran(study(tmp_path, Painter())))
    painter = Painter()
    more = ran(study(tmp_path, painter, gammas=[0.0, 0.1, 0.3, 1.0]))
    assert {gammas for _, gammas, _ in map(lambda a: (a[0], tuple(a[1]), a[2]), painter.asked)} == {
        (0.1,)
    }
    records = all_records(more)
    assert {condition: records[condition] for condition in first} == first
    assert len(records) == len(first) + 5
    painter = Painter()
    fewer = ran(study(tmp_path, painter, gammas=[0.1, 1.0]))
    assert painter.asked == [] and all_records(fewer).items() <= records.items()


def test_seeds_of_a_layout_stay_together_and_follow_batchs_rule(tmp_path):
    data = dataclasses.replace(emoji_data(8), own_seeds=False)
    weights = []

    def statistic(records, given):
        weights.append(given)
        return given @ np.arange(len(records)) / given.sum(1)

    metric = dataclasses.replace(brightness(), statistic=statistic)
    scorers = [scorer(metrics=(metric,))]
    changes = dict(data=data, scorers=scorers, trade_off=None)
    made = ran(study(tmp_path, Painter(), seeds=(0, 7), **changes))
    found = made.records(Condition("gligen", "heldout", "parallel", 1.0))["probes"]
    ids = [case.layout.id for case in data.sets[0].used]
    assert [row["id"] for row in found] == ids * 2
    assert found[0]["pixel"] != found[8]["pixel"]
    results = write_report(made, "")
    assert (weights[0][:, :8] == weights[0][:, 8:]).all() and results["seeds"] == [0, 7]
    painter = Painter()
    ran(study(tmp_path, painter, seeds=(0,), **changes))  # one of them is there
    assert painter.asked == []
    with pytest.raises(ValueError, match="the layouts of this data set have their own"):
        study(tmp_path, Painter(), seeds=(0, 7))


# ---- what is stale, and what is shared


def test_another_scorer_scores_the_images_that_are_there(tmp_path):
    """A second scorer and a new version of the first: neither remakes an image or a record."""
    records = all_records(ran(study(tmp_path, Painter())))
    painter, calls = Painter(), []

    def score(images, cases):
        calls.append(len(images))
        return pixels(images, cases)

    other = scorer("other", score, metrics=(brightness(),))
    both = all_records(ran(study(tmp_path, painter, scorers=[scorer(), other])))
    assert painter.asked == [] and len(calls) == len(records)
    assert both == {c: {"probes": f["probes"], "other": f["probes"]} for c, f in records.items()}
    calls.clear()
    changed = study(tmp_path, painter, scorers=[scorer(score=score, version="2"), other])
    assert all_records(ran(changed)) == both
    assert painter.asked == [] and len(calls) == len(records)


def test_a_unit_made_again_makes_its_scores_stale(tmp_path):
    class Paler(Painter):
        def draw(self, layouts, settings, seeds):
            return super().draw(layouts, settings, seeds) + np.float32(1 / 255)

    before = all_records(ran(study(tmp_path, Painter())))
    lost = tmp_path / "images/gligen-heldout-no_text/seed-0/1/shards/000000000.tar"
    lost.unlink()
    ours = study(tmp_path, Paler())
    ours.generate()
    condition = Condition("gligen", "heldout", "no_text", 1.0)
    with pytest.raises(ValueError, match="probes has not scored all images of images/gligen-held"):
        ours.records(condition)
    calls = []

    def score(images, cases):
        calls.append(len(images))
        return pixels(images, cases)

    after = all_records(ran(study(tmp_path, Paler(), scorers=[scorer(score=score)])))
    assert calls == [8]
    assert after.pop(condition) != before.pop(condition) and after == before


def test_features_are_kept_as_arrays(tmp_path):
    def score(images, cases):
        rows = pixels(images, cases)
        return [row | {"features": np.array(row["pixel"], np.float32) / 7} for row in rows]

    ours = ran(study(tmp_path, Painter(), scorers=[scorer(score=score)]))
    for found in all_records(ours).values():
        for row in found["probes"]:
            assert row["features"].dtype == np.float16
            np.testing.assert_allclose(row["features"], np.array(row["pixel"]) / 7, rtol=1e-3)


def test_steps_may_be_done_alone_and_by_several_hosts(tmp_path):
    painter, painters = Painter(), [Painter(), Painter()]
    bright = dict(scorers=[scorer(metrics=(brightness(),))], trade_off=None)
    alone = ran(study(tmp_path / "alone", painter, 2 * UNIT + 1, **bright))
    shares = [Share(index, 2, "options") for index in range(2)]
    studies = [study(tmp_path / "two", p, 2 * UNIT + 1, **bright) for p in painters]
    studies[0].generate(shares[0])
    done, total = studies[0].score(shares[0])
    assert done == total
    with pytest.raises(ValueError, match="lacks images: run the same command with --only generate"):
        write_report(studies[0], "")
    done, total = studies[1].score(shares[1])
    assert done == 0 and total > 0
    studies[1].generate(shares[1])
    studies[1].score(shares[1])
    assert sum(other.images() for other in painters) == painter.images()
    results = [write_report(made, "") for made in (alone, studies[1])]
    assert results[0] == results[1]
    folders = [tmp_path / "alone", tmp_path / "two"]
    files = [sorted(p.relative_to(f) for p in (f / "scores").rglob("*.jsonl")) for f in folders]
    assert files[0] == files[1]
    assert all((folders[0] / p).read_bytes() == (folders[1] / p).read_bytes() for p in files[0])


def test_a_study_may_be_on_an_object_store(memory, tmp_path):
    there = ran(study("memory://study", Painter()))
    here = ran(study(tmp_path, Painter()))
    assert all_records(there) == all_records(here)
    bright = study(
        "memory://study", Painter(), scorers=[scorer(metrics=(brightness(),))], trade_off=None
    )
    write_report(bright, "reground-jax evaluate")
    assert {"results.json", "report.md", "grid.png"} <= {*open_store("memory://study").names("")}


# ---- what is refused


def test_a_folder_of_another_study_is_refused(tmp_path):
    ran(study(tmp_path, Painter()))
    other = dataclasses.replace(SETTINGS, num_steps=10)
    there = "another study: gate_scale null -> 2.0; settings.num_steps 20 -> 10. Repeat the old"
    with pytest.raises(ValueError, match=there):
        study(tmp_path, Painter(), settings=other, identity={"gate_scale": 2.0}).claim()
    with pytest.raises(
        ValueError, match="the layouts of 'heldout' are not those in its cases/held"
    ):
        data = dataclasses.replace(
            emoji_data(8, rich_phrases=True), identity=emoji_data(8).identity
        )
        study(tmp_path, Painter(), data=data).claim()
    changed = {name: model(Painter(), checksum="1" * 64) for name in ("gligen", "trained-parallel")}
    with pytest.raises(ValueError, match="checkpoint_sha256 000"):
        study(tmp_path, Painter(), models=changed).generate()
    with pytest.raises(ValueError, match="unit_lines 10 -> 20. Repeat the old ones to resume it"):
        study(tmp_path, Painter(), unit_lines=20).score()


def test_a_folder_of_sheets_is_refused(tmp_path):
    (tmp_path / "parts").mkdir()
    with pytest.raises(ValueError, match="a study of an earlier version, which kept its images in"):
        study(tmp_path, Painter()).generate()


def test_scorers_that_cannot_stand_beside_each_other_are_refused(tmp_path):
    for scorers, told in (
        ([scorer(), scorer("probes", metrics=())], "two scorers are called 'probes': rename one"),
        ([scorer(), scorer("b", metrics=(brightness("box"),))], "two metrics are called 'box'"),
        ([scorer(metrics=(brightness(),))], "over 'box', which no scorer measures: choose one of"),
    ):
        with pytest.raises(ValueError, match=told):
            study(tmp_path, Painter(), scorers=scorers)


def test_seeds_are_those_of_layouts_and_differ():
    cases = heldout_cases(100)
    assert len({seed_of(case) for case in cases}) == 100
    dropped = with_half_the_boxes(cases)[0]
    whole = next(case for case in cases if case.layout.id == dropped.layout.id)
    assert seed_of(dropped) == seed_of(whole)
    lines = [json.loads(line) for line in emoji_data(8).inputs["heldout"].splitlines()]
    assert [line["seed"] for line in lines] == [seed_of(case) for case in heldout_cases(40)]


def test_scaled_gates_are_scaled_and_nothing_else_is():
    pipe = Pipeline.from_model(tiny_model())
    block = pipe.params["unet"]["down_blocks"][0]["attentions"][0]["blocks"][0]
    fuser = block["fuser"]
    fuser["alpha_attn"] = jnp.float32(0.1)
    fuser["alpha_dense"] = jnp.float32(-2.0)
    doubled = with_scaled_gates(pipe, 2.0)
    after = doubled.params["unet"]["down_blocks"][0]["attentions"][0]["blocks"][0]
    np.testing.assert_allclose(np.tanh(after["fuser"]["alpha_attn"]), 2 * np.tanh(0.1), rtol=1e-5)
    np.testing.assert_allclose(np.tanh(after["fuser"]["alpha_dense"]), -0.999, rtol=1e-5)
    kernel = ("attn1", "to_out", "kernel")
    before, now = block, after
    for name in kernel:
        before, now = before[name], now[name]
    np.testing.assert_array_equal(before, now)
