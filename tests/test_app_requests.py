"""What `reground-jax app` writes and reads: command lines, Python, and files that are dropped."""

import ast
import dataclasses
import json
import re
import subprocess

import numpy as np
import pytest

from reground_jax import BoxDiff, Layout
from reground_jax.app.commands import command_lines, file_name, python_code
from reground_jax.app.examples import EXAMPLES
from reground_jax.app.form import Form, choice_values, layout_values, settings_values
from reground_jax.app.order import COLUMNS, Choice, checked_order
from reground_jax.app.restoring import restored
from reground_jax.cli import build_parser, generate
from reground_jax.images import Recipe, save_png
from tests.app_forms import ODD, built_in, form, recommended


@pytest.fixture(scope="module")
def models():
    return built_in()


# ---- the command line and the Python


def orders(models):
    base = dataclasses.replace(
        recommended(models), gamma=0.3, num_steps=7, guidance_scale=1.5, solver="ddim", eta=0.25,
        guidance_interval=(0.0, 0.5), height=128, max_boxes=5,
    )  # fmt: skip
    weighted = dataclasses.replace(base, wiring="coupled", text_weight={"mid": 0.5})
    for layout in (*EXAMPLES, ODD):
        yield checked_order("emoji", layout, recommended(models), Choice(), 0)
    for method in ("boxdiff", "boxdiff:refine=1,strength=10.5", "lmd"):
        choice = Choice(COLUMNS, 1 / 3, method, "GLIGEN")
        yield checked_order("emoji-parallel", ODD, base, choice, 4294967295)
    yield checked_order("emoji", ODD, weighted, Choice(("Coupled",), 0.7), 3)


def in_a_shell(commands: str) -> list[list[str]]:
    """The words that each `reground-jax` in a shell's commands gets."""
    script = "f() { printf '%s\\0' \"$@\"; printf '\\1'; }\n" + re.sub(
        "^reground-jax ", "f ", commands, flags=re.MULTILINE
    )
    printed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    return [command.split("\0")[:-1] for command in printed.stdout.split("\1")[:-1]]


def test_the_command_line_asks_for_the_same(models):
    for order in orders(models):
        commands = in_a_shell(command_lines(order, recommended(models, order.model)))
        for name, words in zip(order.columns, commands, strict=True):
            arguments = build_parser().parse_args(words)
            asked = generate.read_request(arguments)
            _, made = generate.choose_model(arguments, asked)
            assert made.layout == order.layout and made.settings == order.columns[name]
            assert (made.seed, made.checkpoint) == (order.seed, order.model)
            assert made.checksum == models[order.model].description.checksum
            assert arguments.out == file_name(order, name)


def test_the_python_asks_for_the_same(models):
    for order in orders(models):
        asked, names = [], []

        class Image:
            def save(self, name, names=names):
                names.append(name)

        class Pipeline:
            load = classmethod(lambda cls, name, dtype: cls())

            def __call__(self, layout, seeds, asked=asked, **fields):
                asked.append((layout, seeds, fields))
                return [Image()]

        code = python_code(order, recommended(models, order.model))
        assert len(ast.parse(code).body) == 3 + 2 * len(order.columns)
        exec(code.partition("\n")[2], {"Layout": Layout, "Pipeline": Pipeline})
        for (layout, seed, fields), settings in zip(asked, order.columns.values(), strict=True):
            assert (layout, seed) == (order.layout, order.seed)
            base = recommended(models, order.model)
            assert dataclasses.replace(base, **fields) == settings
        assert names == [file_name(order, name) for name in order.columns]


def test_what_no_command_line_says_is_told(models):
    guidance = BoxDiff(thresholds=((0.0, 0.1),))
    settings = dataclasses.replace(recommended(models), attention_guidance=guidance)
    order = dataclasses.replace(form(models).order(models), columns={"x": settings})
    with pytest.raises(ValueError, match="no command line says attention_guidance"):
        command_lines(order, recommended(models))
    assert "'thresholds': [[0.0, 0.1]]" in python_code(order, recommended(models))


# ---- files that are dropped


def png(tmp_path, models, layout=ODD, **changes):
    """A picture with a recipe inside."""
    fields = {"checkpoint": "emoji", "checksum": models["emoji"].description.checksum, "seed": 5}
    given = {"settings": dataclasses.replace(recommended(models), gamma=0.333)} | fields | changes
    save_png(tmp_path / "old.png", np.zeros((8, 8, 3), np.uint8), Recipe(layout, **given))
    return tmp_path / "old.png"


def test_a_picture_restores_its_request(models, tmp_path):
    settings = dataclasses.replace(recommended(models), wiring="sequential", gamma=0.333, eta=0)
    found = restored(png(tmp_path, models, settings=settings), models, "emoji-parallel")
    assert (found.model, found.seed, found.notes, found.hidden) == ("emoji", 5, (), ())
    values = layout_values(models, found.model, found.settings, found.layout)
    values |= settings_values(found.settings) | choice_values(found.choice)
    order = Form(model=found.model, seed=found.seed, **values).order(models)
    assert order.layout == ODD and order.columns == {"GLIGEN": settings}


def test_a_picture_of_another_model_does_not_choose_what_runs(models, tmp_path):
    for name in ("emoji", "/etc", "someone/model", "emoji-sem"):
        path = png(tmp_path, models, checkpoint=name, checksum="0" * 64)
        found = restored(path, models, "emoji-parallel")
        assert found.model == "emoji-parallel"
        assert "none of this page's models" in found.notes[0] and repr(name) in found.notes[0]
    found = restored(png(tmp_path, models, checkpoint="x", checksum=None), models, "emoji")
    assert found.model == "emoji" and "does not record its model" in found.notes[0]
    # The name is only a name: the checksum decides.
    assert restored(png(tmp_path, models, checkpoint="/etc"), models, "emoji-parallel").notes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wiring": "no_text"}, "wiring 'no_text' is no column"),
        ({"wiring": "coupled", "coupling": {"mid": 0}}, "coupling is not one number"),
        ({"gamma": (0.3, 0.0, 0.7)}, "gamma has three parts"),
    ],
)
def test_a_request_that_the_page_cannot_show_is_refused(models, tmp_path, changes, message):
    settings = dataclasses.replace(recommended(models), **changes)
    with pytest.raises(ValueError, match=f"old.png: .*{message}.*generate --from"):
        restored(png(tmp_path, models, settings=settings), models, "emoji")


def test_a_layout_restores_boxes_only(models, tmp_path):
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(dataclasses.replace(ODD, id="a name").to_json()))
    found = restored(path, models, "emoji")
    assert found.layout == ODD and found.settings is found.choice is found.seed is None
    path.write_text(json.dumps({"prompt": "x", "map": "/etc/passwd"}))
    with pytest.raises(ValueError, match="layout.json: has map, but this page"):
        restored(path, models, "emoji")
    path.write_text("{")
    with pytest.raises(ValueError, match="layout.json is not JSON"):
        restored(path, models, "emoji")


def test_any_other_file_is_refused_by_its_name_alone(models, tmp_path):
    for name, content in (("a.png", b"no picture"), ("b.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as caught:
            restored(tmp_path / name, models, "emoji")
        assert str(tmp_path) not in str(caught.value)
