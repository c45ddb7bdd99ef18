"""Studies: what is run, what is rerun after a kill, and the command."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax.cli import evaluate, main
from reground_jax.cli.evaluate import command_of, default_arguments
from reground_jax.emoji.cases import heldout_cases
from reground_jax.evaluation.cases import seed_of, with_half_the_boxes
from reground_jax.evaluation.conditions import Condition, wiring_series
from reground_jax.evaluation.pictures import with_scaled_gates
from reground_jax.evaluation.study import CHUNK
from reground_jax.pipeline import Pipeline
from reground_jax.settings import AMOUNTS
from tests.models import tiny_model
from tests.renders import renders
from tests.studies import SETTINGS, Painter, brightness, pixels, red_of, scorer, study


def test_the_study_has_the_conditions_of_the_figure():
    series = wiring_series(["gligen", "other"], ["heldout", "dropped", "nsr1k"], [0.0, 0.3, 1.0])
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
    more = wiring_series(["gligen"], ["heldout", "dropped", "nsr1k"], [0.0, 1.0], ["coupled:0.5"])
    assert {(s.cases, s.gammas) for s in more if s.method == "coupled:0.5"} == {
        ("heldout", (1.0,)), ("dropped", (1.0,))
    }  # fmt: skip
    own = wiring_series(["gligen"], ["heldout"], [0.0, 1.0], ["coupled:0.5"], [0.5, 1.0])
    assert [s.gammas for s in own if s.method == "coupled:0.5"] == [(0.5, 1.0)]
    with_pieces = Condition("gligen", "heldout", "coupled:0.3:1/0.7:0", 0.3)
    assert with_pieces.folder == "gligen-heldout-coupled-0.3-1-0.7-0-0.3"  # no folder in a folder


def test_records_are_of_the_images_of_their_condition_and_layout(tmp_path):
    ours = study(tmp_path, Painter(), more=["coupled:0.25", "coupled:down=0,mid=0"])
    progress = []
    records = ours.run(lambda done, total: progress.append((done, total)))
    assert len(records) == 2 * 3 + 2 * 2 + 3 + 3 + 2 * 2 * 2
    for condition, found in records.items():
        rows = found["probes"]
        cases = ours.cases[condition.cases]
        assert [row["id"] for row in rows] == [case.layout.id for case in cases]
        for row, case in zip(rows, cases, strict=True):
            red = red_of(SETTINGS.with_method(condition.method))
            green = round(100 * condition.gamma)
            assert row["pixel"] == [red, green, seed_of(case) % 256]
    done, totals = zip(*progress, strict=True)
    assert list(done) == sorted(done) and done[-1] == totals[0]
    assert done[-1] == sum(len(found["probes"]) for found in records.values())
    shown = ours.images(Condition("gligen", "heldout", "parallel", 0.3), 5)
    assert shown.shape == (5, 8, 8, 3) and (shown[:, 0, 0, 1] == 30).all()


def test_a_folder_from_before_there_were_couplings_goes_on(tmp_path):
    study(tmp_path, Painter()).run()
    path = tmp_path / "study.json"
    stored = json.loads(path.read_text())
    for name in AMOUNTS:
        del stored["settings"][name]
    path.write_text(json.dumps(stored))
    painter = Painter()
    study(tmp_path, painter, more=["coupled:0.25"]).run()
    assert [asked[:2] for asked in painter.asked] == [("coupled", [0.3, 1.0])] * 2


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
    (lost,) = (tmp_path / "scores").glob("*/gligen-heldout-parallel-0.3/*.json")
    lost.unlink()
    for path in tmp_path.glob("*/**/gligen-heldout-sequential-1/*.*"):
        path.unlink()  # the images too: only this gamma is made again
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
    there = "another study: rich_phrases false -> true; settings.num_steps 20 -> 10. Repeat the old"
    with pytest.raises(ValueError, match=there):
        study(tmp_path, Painter(), settings=other, identity={"rich_phrases": True}).run()


def test_another_scorer_scores_the_images_that_are_there(tmp_path):
    """A second scorer and a new version of the first: neither remakes an image or a record."""
    records = study(tmp_path, Painter()).run()
    painter, calls = Painter(), []

    def score(images, cases):
        calls.append(len(images))
        return pixels(images, cases)

    other = scorer("other", score, metrics=(brightness(),))
    both = study(tmp_path, painter, scorers=[scorer(), other]).run()
    assert painter.asked == [] and len(calls) == len(records)
    assert both == {c: {"probes": f["probes"], "other": f["probes"]} for c, f in records.items()}
    calls.clear()
    changed = study(tmp_path, painter, scorers=[scorer(score=score, version="2"), other]).run()
    assert painter.asked == [] and len(calls) == len(records) and changed == both


def test_a_folder_from_before_scorers_had_records_of_their_own_goes_on(tmp_path):
    """Its study.json has the version of the scorer, and its records are next to the images."""
    ours = study(tmp_path, Painter())
    ours.claim()
    path = tmp_path / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"probes": "an older one"}))
    images = study(tmp_path / "new", Painter())
    records = images.run()
    (tmp_path / "new" / "parts").rename(tmp_path / "parts")
    for sheet in (tmp_path / "parts").glob("*/*.png"):
        sheet.with_suffix(".json").write_text("[]")
    painter = Painter()
    assert study(tmp_path, painter).run() == records and painter.asked == []


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


def test_scaled_gates_are_scaled_and_nothing_else_is():
    model = tiny_model()
    pipe = Pipeline.from_model(model)
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
        (["--layouts", "5000"], "cannot use 5000 layouts: choose 1 to 1000"),
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

    def sweep(self, layouts, settings, *, gammas, **keywords):
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
    # Without fusers both wirings are the same; images of noise show none of the layouts.
    zero = [r for r in results["conditions"] if r["gamma"] == 0 and r["cases"] == "heldout"]
    assert zero[0]["text"] == zero[1]["text"] and zero[0]["box"][0] < 0.5
