"""Attention guidance against losses, gradients and runs that others computed.

guidance_losses.npz: values and gradients of the original projects' loss functions, on their maps.
guidance_runs.npz with guidance_tiny/: whole runs of a small GLIGEN in PyTorch, float64.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reground_jax import Layout, Pipeline, Settings
from reground_jax.attention_guidance import (
    AttentionGuidance,
    AttentionRefocusing,
    BoxDiff,
    LayoutGuidance,
)
from reground_jax.networks.places import Place
from reground_jax.programs import Programs
from reground_jax.sampling.attention_guidance import backward, boxdiff, refocusing
from reground_jax.sampling.attention_guidance.boxes import GuidedBox, GuidedLayout
from reground_jax.sampling.solvers import SOLVERS
from tests.fixtures import fixtures

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2e-6, 1e-5


@functools.cache
def losses() -> tuple[dict[str, np.ndarray], list[dict]]:
    with np.load(fixtures() / "guidance_losses.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays["info"]))["cases"]


def on_device(targets):
    return jax.tree.map(jnp.asarray, targets)


def place(attention, index: int = 0) -> Place:
    return Place("up_1", index, 0, attention)


def maps_of(kind, arrays) -> dict:
    """[heads, T, S] each, by made-up places, as one sample."""
    return {place(kind, i): jnp.asarray(array)[None] for i, array in enumerate(arrays)}


def guided_layout(case: dict, end: int = 76) -> GuidedLayout:
    """Boxes of objects in order; BoxDiff's cases have one box each, without the list."""
    found = []
    for row, boxes in enumerate(case["boxes"]):
        tokens = tuple(case["tokens"][row]) if "tokens" in case else (row + 1,)
        boxes = [boxes] if np.ndim(boxes) == 1 else boxes
        slots = case["slots"][row] if "slots" in case else [0] * len(boxes)
        found += [GuidedBox(tuple(b), tokens, s) for b, s in zip(boxes, slots, strict=True)]
    return GuidedLayout(tuple(found), end)


def evaluated(case: dict, arrays: dict) -> tuple[dict, dict]:
    """(what the case's method makes, its gradients), by the fixture's names."""
    method, layout = case["method"], guided_layout(case)
    if method in ("boxdiff", "car"):
        average = jnp.asarray(arrays[case["map"]])
        height, width, length = average.shape
        options = case.get("options", {})
        layout = layout._replace(end=options.get("last", length - 1))

        def loss(average):
            maps = maps_of("text", [average.reshape(1, height * width, length)])
            if method == "car":
                targets = on_device(refocusing.targets([layout], (height, width)))
                return refocusing.cross_loss(maps, targets, jnp.array(case["early"]))
            share, reach = options.get("P", 0.2), options.get("L", 1)
            targets = boxdiff.targets([layout], (height, width), share=share, reach=reach)
            targets = on_device(targets)
            edge = jnp.float32(boxdiff.edge_weight(options.get("sigma", 0.5)))
            return boxdiff.loss(maps, targets, edge)

        (value, other), gradient = jax.value_and_grad(
            lambda a: tuple(x[0] for x in loss(a)), has_aux=True
        )(average)
        name = "smallest_inside" if method == "car" else "largest_inner"
        return {"loss": value, name: other}, {"grad": gradient}
    if method in ("sar", "gsa"):
        maps = jnp.asarray(arrays[case["map"]])
        side = int(maps.shape[2] ** 0.5)
        targets = on_device(refocusing.targets([layout], (side, side)))
        one = refocusing.self_loss if method == "sar" else refocusing.fuser_loss
        kind = "self" if method == "sar" else "fuser"
        value, gradient = jax.value_and_grad(lambda m: one(maps_of(kind, m), targets)[0])(maps)
        return {"loss": value}, {"grad": gradient}
    mid, up = (jnp.asarray(arrays[f"{case['map']}/{part}"]) for part in ("mid", "up"))
    sides = [int(array.shape[-2] ** 0.5) for array in (mid, *up)]

    def loss_of_both(mid, up):
        maps = maps_of("text", [mid, *up])
        targets = backward.targets([layout], [(n, n) for n in sides], by_extent=method == "lmd")
        targets = on_device(targets)
        if method == "layout":
            return backward.layout_loss(maps, targets)[0]
        return backward.lmd_loss(maps, targets, jnp.float32(4))[0]

    value, (of_mid, of_up) = jax.value_and_grad(loss_of_both, argnums=(0, 1))(mid, up)
    return {"loss": value}, {"grad_mid": of_mid, "grad_up": of_up}


def test_every_loss_and_its_gradient_equal_the_originals():
    arrays, cases = losses()
    assert cases
    for case in cases:
        values, gradients = evaluated(case, arrays)
        expected = {name: case.get(name) for name in values} | {
            "loss": arrays[f"{case['key']}/loss"]
        }
        for name, value in values.items():
            assert value == pytest.approx(expected[name], rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE), (
                case["key"], name,
            )  # fmt: skip
        for name, gradient in gradients.items():
            right = arrays[f"{case['key']}/{name}"]
            error = np.abs(gradient - right).max()
            assert error <= GRADIENT_TOLERANCE * np.abs(right).max(), (case["key"], name)


# ---- whole runs


@functools.cache
def runs() -> tuple[dict[str, np.ndarray], dict]:
    with np.load(fixtures() / "guidance_runs.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays["info"]))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Pipeline:
    cache = tmp_path_factory.mktemp("guidance")
    return Pipeline.load(str(fixtures() / "guidance_tiny"), cache=cache)


@pytest.fixture
def pipe(loaded) -> Pipeline:
    """With programs of its own, so that they are freed."""
    programs = Programs(loaded.config, loaded.programs.hardware)
    return dataclasses.replace(loaded, programs=programs)


def method_of(numbers: dict) -> AttentionGuidance | None:
    """The method of a fixture's settings, whose schedules are in steps."""
    steps = numbers["steps"]

    def fraction(step: int) -> float:
        return int(step) / steps

    match numbers["method"]:
        case "boxdiff":
            refine = {}
            if numbers["refine"]:
                thresholds = numbers["thresholds"].items()
                refine = {
                    "refine": True, "most": numbers["cap"],
                    "thresholds": tuple((fraction(step), value) for step, value in thresholds),
                }  # fmt: skip
            return BoxDiff(strength=numbers["scale"], until=fraction(numbers["stop"]), **refine)
        case "ar":
            schedule = tuple(
                (fraction(step + 1), scale, most, 0)
                for step, (scale, most) in enumerate(numbers["table"])
            )
            return AttentionRefocusing(
                schedule=schedule,
                early=fraction(numbers["early"]),
                first=fraction(numbers["first"]),
            )
        case "layout":
            return LayoutGuidance(
                strength=numbers["scale"], until=fraction(numbers["stop"]), most=numbers["cap"],
                threshold=numbers["threshold"],
            )  # fmt: skip
    return None


def case_of(info: dict, name: str, wiring: str) -> tuple[list[dict], Settings]:
    """The cases of one batch, and their settings."""
    numbers = info["settings"][name]
    settings = Settings(
        wiring=wiring, gamma=numbers["grounded"] / numbers["steps"], num_steps=numbers["steps"],
        guidance_scale=numbers["guidance"], solver="ddim", attention_guidance=method_of(numbers),
    )  # fmt: skip
    cases = [c for c in info["cases"] if (c["settings"], c["wiring"]) == (name, wiring)]
    return cases, settings


def layouts_of(cases: list[dict]) -> list[Layout]:
    return [Layout(**case["layout"]) for case in cases]


def ours(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -3, -1)


def check(found, right, tolerance: float, what) -> None:
    error = np.abs(np.asarray(found) - right).max()
    assert error <= tolerance * np.abs(right).max(), (what, error)


def tolerance_of(settings: Settings) -> float:
    return 1e-3 if getattr(settings.attention_guidance, "refine", False) else 1e-4


def batches(guided: bool = False) -> list[tuple[str, str]]:
    """(name of settings, wiring) of the runs; guided: of those that have updates."""
    _, info = runs()
    found = dict.fromkeys((case["settings"], case["wiring"]) for case in info["cases"])
    return [one for one in found if not guided or method_of(info["settings"][one[0]])]


def check_run(pipe: Pipeline, cases: list[dict], settings: Settings) -> None:
    """The latents after each step of these samples, as one batch."""
    arrays, _ = runs()
    rows = [int(case["key"].split("/")[-1]) for case in cases]
    session = pipe.session(layouts_of(cases), settings, latents=ours(arrays["x"][rows]))
    while session.step < session.num_steps:
        found = session.run(session.step + 1).latents
        for index, case in enumerate(cases):
            right = ours(arrays[f"{case['key']}/after"][session.step - 1])
            check(found[index], right, tolerance_of(settings), (case["key"], session.step))


@pytest.mark.parametrize(("name", "wiring"), batches())
def test_whole_runs_equal_the_references(pipe, name, wiring):
    """As one batch of samples whose numbers of updates differ."""
    check_run(pipe, *case_of(runs()[1], name, wiring))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wiring"), batches())
def test_whole_runs_one_by_one_equal_the_references(pipe, name, wiring):
    cases, settings = case_of(runs()[1], name, wiring)
    for case in cases:
        check_run(pipe, [case], settings)


@pytest.fixture
def still(pipe, monkeypatch) -> Pipeline:
    """A pipeline whose solver leaves the latents as the updates of a step made them."""
    solver = dataclasses.replace(SOLVERS["ddim"], update=lambda state, *_: state)
    monkeypatch.setitem(SOLVERS, "ddim", solver)
    return pipe


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wiring"), batches(guided=True))
def test_every_step_makes_the_references_updates_and_no_more(still, name, wiring):
    """From the reference's latents before a step: after all updates and, of one, after each."""
    arrays, info = runs()
    cases, settings = case_of(info, name, wiring)
    keys, tolerance = [case["key"] for case in cases], tolerance_of(settings)
    session = still.session(layouts_of(cases), settings)
    all_steps = session._guidance_steps
    for step in range(settings.num_steps):
        before = [
            arrays[f"{key}/after"][step - 1] if step else arrays["x"][int(key.split("/")[-1])]
            for key in keys
        ]
        (key, *_), own = keys, arrays[f"{keys[0]}/step"] == step
        start = session._state._replace(x=jnp.asarray(ours(np.stack(before))))
        kinds, every = arrays[f"{key}/kind"][own], arrays[f"{key}/every"][own]
        for count in range(len(kinds)):
            most = {"most": kinds[:count] == "all", "refine_most": kinds[:count] == "inner"}
            fields = {
                field: np.full(settings.num_steps, n.sum(), np.int32) for field, n in most.items()
            }
            session._guidance_steps = all_steps._replace(**fields)
            session._state, session.step = jax.tree.map(jnp.copy, start), step
            found = session.run(step + 1).latents[0]
            check(
                found, ours(every[count - 1] if count else before[0]), tolerance, (key, step, count)
            )
        session._guidance_steps = all_steps
        session._state, session.step = start, step
        session.run(step + 1)
        for index, key in enumerate(keys):
            right = ours(arrays[f"{key}/guided"][step])
            check(session.latents[index], right, tolerance, (key, step))


def test_words_are_found_where_the_references_have_them(pipe):
    _, info = runs()
    for case in info["cases"]:
        (layout,) = layouts_of([case])
        words = pipe.texts.words([layout], max_boxes=30, missing="error")
        found = [np.flatnonzero(row).tolist() for row in words.tokens[0]]
        assert found == case["tokens"] + [[]] * (30 - len(layout.boxes))
