"""The parts of `reground-jax app` that need no browser and no Gradio."""

import dataclasses
import subprocess
import sys
import threading

import numpy as np
import pytest

from reground_jax import BoxDiff, Layout
from reground_jax.app import canvas
from reground_jax.app.examples import EXAMPLES
from reground_jax.app.form import NAMES
from reground_jax.app.models import Models, offer
from reground_jax.app.order import COLUMNS, checked_order, choice_of, hidden_settings
from reground_jax.app.results import figures, layout_link
from reground_jax.app.runs import Run, Runs, stops
from reground_jax.app.saving import Folder
from reground_jax.cli.sampling import find_model
from reground_jax.convert.locate import MODELS
from reground_jax.emoji.categories import CATEGORIES
from reground_jax.layout_kinds import check_kind
from reground_jax.session import Canceled
from tests.app_forms import ODD, built_in, form, load, recommended
from tests.command import one_error


@pytest.fixture(scope="module")
def models():
    return built_in()


# ---- boxes


def test_boxes_come_back_from_the_canvas_exactly_and_in_order():
    size = canvas.canvas_size(64, 64)
    drawn = canvas.drawn_boxes(ODD, size)
    assert [box["label"] for box in drawn] == ["-a cat@home", "a dog"]  # the newest first
    assert canvas.layout_boxes(drawn, size, ODD.boxes) == (list(ODD.phrases), list(ODD.boxes))
    moved = [drawn[0] | {"xmin": 10, "xmax": 510}, drawn[1]]
    phrases, boxes = canvas.layout_boxes(moved, size, ODD.boxes)
    assert boxes == [ODD.boxes[0], (0.01, 0.0, 0.51, 0.123)]


def test_the_canvas_has_the_image_s_ratio():
    assert canvas.canvas_size(512, 768) == (1000, 667)
    assert canvas.blank((1000, 667)).size == (1000, 667)
    box = {"label": "x", "xmin": 0, "ymin": 0, "xmax": 1000, "ymax": 667}
    assert canvas.layout_boxes([box], (1000, 667)) == (["x"], [(0, 0, 1, 1)])


def test_boxes_that_reach_over_the_edge_are_cut_and_corners_are_put_in_order():
    box = {"label": " a cat ", "xmin": 1003, "ymin": -4, "xmax": 500, "ymax": 250}
    assert canvas.layout_boxes([box], (1000, 1000)) == (["a cat"], [(0.5, 0, 1, 0.25)])


@pytest.mark.parametrize("label", ["", "  ", None])
def test_a_box_without_a_label_is_named(models, label):
    boxes = canvas.drawn_boxes(EXAMPLES[0], (1000, 1000))
    boxes[0]["label"] = label
    with pytest.raises(ValueError, match="box 2 has no label"):
        form(models, canvas={"boxes": boxes}).order(models)


# ---- what the fields ask for


def test_the_page_opens_with_what_the_model_recommends(models):
    order = form(models).order(models)
    assert order.layout == EXAMPLES[0] and list(order.columns) == list(COLUMNS[:3])
    for settings, wiring in zip(
        order.columns.values(), ("no_grounding", "sequential", "parallel"), strict=True
    ):
        assert settings == dataclasses.replace(recommended(models), wiring=wiring)


def test_columns_are_methods(models):
    chosen = {"columns": ["Attention guidance", "Coupled"], "coupling": 0.25, "under": "Coupled"}
    order = form(models, method="boxdiff:strength=10", **chosen).order(models)
    assert list(order.columns) == ["Coupled", "Attention guidance"]
    coupled, guided = order.columns.values()
    assert (coupled.wiring, coupled.coupling) == ("coupled", 0.25)
    assert guided == dataclasses.replace(coupled, attention_guidance=BoxDiff(strength=10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": []}, "no column is chosen"),
        ({"prompt": " ", "canvas": None}, "no prompt and no box"),
        ({"num_steps": None}, "num_steps is None"),
        ({"seed": -1}, "a seed is an integer from 0"),
        ({"guidance_scale": None}, "guidance_scale is None"),
        (
            {"columns": ["Attention guidance"], "method": "none"},
            "attention guidance 'none' is unknown",
        ),
        ({"columns": ["Attention guidance"], "method": ""}, "no method of attention guidance"),
    ],
)
def test_bad_input_is_one_sentence(models, changes, message):
    with pytest.raises(ValueError, match=message):
        form(models, **changes).order(models)


def test_settings_without_a_field_stay_in_force_and_are_told(models):
    base = dataclasses.replace(recommended(models), solver="ddim", eta=0.5, max_boxes=4)
    kept = form(models, base=base, solver="ddim").order(models).settings
    assert (kept.eta, kept.max_boxes) == (0.5, 4)
    assert hidden_settings(base, recommended(models)) == ["eta 0.5", "max_boxes 4"]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_s_settings_say_which_column_they_are(models, name):
    settings = form(models, columns=[name], coupling=0.125).order(models).columns[name]
    choice = choice_of(settings)
    assert choice.columns == (name,)
    again = checked_order("emoji", EXAMPLES[0], settings, choice, 0)
    assert again.columns == {name: settings}


# ---- runs


def small(models: Models, *columns: str, **changes):
    return form(models, columns=list(columns), num_steps=3, **changes).order(models)


def test_columns_come_into_being_together_and_are_what_the_pipeline_makes(models):
    order = small(models, "GLIGEN", "ReGround")
    run = Run(models, order)
    seen = list(run)
    assert [(p.step, len(p.images)) for p in seen][:3] == [(0, 1), (1, 2), (1, 2)]
    assert [p.done for p in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1].speed is not None and seen[-1].speed > 0
    pipe = models.pipeline("emoji", "float32")
    for name, settings in order.columns.items():
        (image,) = pipe(order.layout, settings, seeds=order.seed)
        np.testing.assert_array_equal(np.asarray(image), seen[-1].images[name])
        recipe = run.recipe(name)
        assert (recipe.layout, recipe.settings, recipe.seed) == (order.layout, settings, 0)
        assert recipe.checksum == find_model("emoji", None).checksum


def test_a_run_is_canceled_within_a_step(models):
    runs, order = Runs(), small(models, "ReGround")
    run = Run(models, order, runs.begin("page"))
    with pytest.raises(Canceled, match="after step 2"):
        for progress in run:
            assert progress.step == 1
            runs.cancel("page")
    waiting = Run(models, order, runs.begin("page"))
    runs.cancel("page")
    with pytest.raises(Canceled, match="before the first step"):
        next(iter(waiting))
    assert not models.device.locked()


def test_a_page_has_one_run_and_none_once_it_is_closed():
    runs = Runs()
    first = runs.begin("page")
    assert not first.is_set() and not runs.begin("another page").is_set()
    second = runs.begin("page")
    assert first.is_set() and runs.flag("page") is second
    runs.forget("page")
    assert second.is_set() and runs.flag("page").is_set()
    runs.cancel("no page")


def test_the_model_s_warnings_are_kept_for_the_page(models):
    run = Run(models, small(models, "ReGround", prompt="a dog and a unicorn and a car"))
    for _ in run:
        pass
    assert any("unicorn" in message for message in run.warnings)


def test_previews_are_at_the_first_step_every_few_and_the_last():
    assert stops(1) == [1] and stops(3) == [1, 2, 3]
    assert stops(20) == [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert stops(50)[:3] == [1, 5, 10] and stops(1000)[-2:] == [900, 1000]


def test_two_pipelines_are_kept():
    made = []

    def load(model, dtype):
        made.append((model.name, dtype))
        return object()

    offered = [offer(name, MODELS / name) for name in ("emoji", "emoji-parallel")]
    few = Models(offered, load)
    for key in (("emoji", "float32"), ("emoji-parallel", "float32"), ("emoji", "float32")):
        few.pipeline(*key)
    few.pipeline("emoji", "bfloat16")  # emoji-parallel goes
    few.pipeline("emoji", "float32")
    assert made == [("emoji", "float32"), ("emoji-parallel", "float32"), ("emoji", "bfloat16")]


# ---- what is shown and saved


def test_texts_on_the_page_cannot_be_markup():
    layout = Layout("<b>", ["<script>alert(1)</script>"], [(0, 0, 1, 1)])
    html = figures({"<i>": "<u>"}, layout, 1.0, {})
    assert "<script" not in html and "<i>:" not in html and "<u>" not in html
    assert "<b>" not in layout_link(layout, '">.json') and '">.json' not in html


def test_files_are_never_overwritten(tmp_path):
    folder = Folder(tmp_path / "new" / "out")
    paths = [path for i in range(3) if (path := folder.save("a.png", bytes([i])))]
    assert [path.name for path in paths] == ["a.png", "a-2.png", "a-3.png"]
    assert [path.read_bytes() for path in paths] == [b"\0", b"\1", b"\2"]
    assert Folder(None).save("a.png", b"") is None


def test_examples_are_of_things_that_the_model_draws():
    assert len(EXAMPLES) == len(set(EXAMPLES)) == 12
    for layout in EXAMPLES:
        check_kind(layout, "text")
        for phrase, (x0, y0, x1, y1) in zip(layout.phrases, layout.boxes, strict=True):
            assert str(phrase).endswith(tuple(CATEGORIES)) and str(phrase) in layout.prompt
            assert max(x1 - x0, y1 - y0) >= 3 / 8


# ---- the command


def test_a_model_of_another_kind_and_a_wrong_port_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("reground_jax.app.server.check_installed", lambda: None)
    assert "sem grounding" in one_error(capsys, ["app", "--model", "emoji-sem"])
    assert "--port is 0" in one_error(capsys, ["app", "--port", "0"])
    assert "--port is x" in one_error(capsys, ["app", "--port", "x"])


def test_without_the_extra_one_sentence_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr("reground_jax.app.server.PACKAGES", ("no_such_package",))
    message = one_error(capsys, ["app"])
    assert "pip install 'reground-jax[app]'" in message


def test_the_parts_need_no_gradio():
    names = "canvas commands examples form models order restoring results runs saving server"
    code = "import sys\n" + "".join(f"import reground_jax.app.{n}\n" for n in names.split())
    code += "assert not [n for n in sys.modules if 'gradio' in n]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_form_has_the_page_s_fields_in_order():
    assert NAMES[:3] == ("model", "canvas", "prompt") and NAMES[-2:] == ("base", "exact")
    assert isinstance(Models([], load).device, type(threading.Lock()))
