"""The page: its parts, and which action each of them starts. Needs the extra [app]."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default
from gradio_image_annotation import image_annotator

from reground_jax.app import canvas, results
from reground_jax.app.actions import Actions
from reground_jax.app.examples import EXAMPLES
from reground_jax.app.form import NAMES, layout_values, opening, settings_values
from reground_jax.app.models import Models
from reground_jax.app.order import (
    COLUMNS,
    COUPLED,
    GUIDED,
    UNDER,
    Choice,
    Order,
)
from reground_jax.app.saving import Folder
from reground_jax.attention_guidance import METHODS
from reground_jax.draw import draw_layout
from reground_jax.settings import MAX_SEED, MAX_STEPS, SOLVER_NAMES

HERE = Path(__file__).parent
TITLE = "reground-jax"
INTRODUCTION = (
    "Draw boxes, say what is in each, and compare what Stable Diffusion, GLIGEN and ReGround make "
    "of them."
)
HINT = (
    "<b>Create box</b> (C), then drag on the paper and name what is in it. <b>Drag boxes</b> (D) "
    "moves and resizes them; a double-click renames one, Del removes it."
)
THUMBNAIL = 140  # pixels of a side of an example
UPLOADS = "20mb"  # largest dropped file
KEPT = 3600  # seconds for which Gradio keeps its temporary files
RANDOM_SEED = f"() => Math.floor(Math.random() * {MAX_SEED + 1})"
TOGGLE_BOXES = "(on) => { document.getElementById('rg-right').classList.toggle('rg-boxes', on); }"
# Without Gradio's own fonts; those of the system need no request.
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Consolas", "DejaVu Sans Mono", "monospace"]

Parts = dict[str, Any]  # components by name; those of `NAMES` are the form


def build(models: Models, folder: Folder) -> gr.Blocks:
    """The whole page."""
    parts: Parts = {}
    first, actions = opening(models), Actions(models, folder)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>{INTRODUCTION}</p>", elem_id="rg-title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                add_layout(parts, models, first)
            with gr.Column(scale=7, min_width=320, elem_id="rg-right"):
                add_results(parts, actions, first)
                add_examples(parts)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                add_settings(parts, models, first)
            with gr.Column(scale=7, min_width=320):
                add_files(parts)
        connect(page, parts, actions)
    return page


def add_layout(parts: Parts, models: Models, first: Order) -> None:
    recommended = models[first.model].recommended
    values = layout_values(models, first.model, recommended, first.layout)
    parts["canvas"] = image_annotator(
        values["canvas"], label="Layout", show_label=False,
        image_type="pil", sources=[],
        show_download_button=False, show_share_button=False, show_clear_button=False,
        show_remove_button=True, box_min_size=canvas.SMALLEST, boxes_alpha=0.15, handle_size=10,
        elem_id="rg-canvas",
    )  # fmt: skip
    gr.HTML(HINT, elem_id="rg-hint")
    parts["exact"] = gr.State(values["exact"])
    parts["prompt"] = gr.Textbox(
        values["prompt"], label="Prompt", lines=2, max_lines=4, elem_id="rg-prompt"
    )
    parts["negative_prompt"] = gr.Textbox(
        "", label="Negative prompt", placeholder="what the picture should not look like",
        lines=1, max_lines=2, elem_id="rg-negative",
    )  # fmt: skip
    with gr.Row():
        parts["run"] = gr.Button("Run", variant="primary", min_width=100, elem_id="rg-run")
        parts["cancel"] = gr.Button("Cancel", interactive=False, min_width=100, elem_id="rg-cancel")


def add_results(parts: Parts, actions: Actions, first: Order) -> None:
    choice = Choice()
    parts["columns"] = gr.CheckboxGroup(
        list(COLUMNS), value=list(choice.columns), label="Columns", elem_id="rg-columns"
    )
    with gr.Row(visible=False) as parts["extras"]:
        parts["coupling"] = gr.Slider(
            0, 1, choice.coupling, step=0.01, label="Coupling", visible=False, min_width=200,
            info="0 is ReGround, 1 is GLIGEN", elem_id="rg-coupling",
        )  # fmt: skip
        parts["method"] = gr.Dropdown(
            list(METHODS), value=choice.method, label="Attention guidance", visible=False,
            allow_custom_value=True, min_width=160, elem_id="rg-method",
            info="with numbers: boxdiff:strength=10",
        )  # fmt: skip
        parts["under"] = gr.Dropdown(
            list(UNDER), value=choice.under, label="added to", visible=False, min_width=160,
            info="whose wiring it guides", elem_id="rg-under",
        )  # fmt: skip
    empty = results.status("Press Run.") + actions.figures(first, {})
    parts["results"] = gr.HTML(empty, elem_id="rg-results")
    parts["boxes"] = gr.Checkbox(False, label="Show the boxes over the pictures", container=False)


def add_examples(parts: Parts) -> None:
    thumbnails = [(draw_layout(e, width=THUMBNAIL, height=THUMBNAIL), e.prompt) for e in EXAMPLES]
    parts["examples"] = gr.Gallery(
        thumbnails, label="Examples", columns=6, allow_preview=False, height="auto",
        object_fit="contain", buttons=[], interactive=False, format="png", elem_id="rg-examples",
    )  # fmt: skip


def add_settings(parts: Parts, models: Models, first: Order) -> None:
    recommended = models[first.model].recommended
    parts["base"] = gr.State(recommended)
    with gr.Group():
        with gr.Row():
            parts["model"] = gr.Dropdown(
                models.names, value=first.model, label="Model", min_width=140, elem_id="rg-model"
            )
            parts["solver"] = gr.Dropdown(
                list(SOLVER_NAMES), value=recommended.solver, label="Solver", min_width=140,
                elem_id="rg-solver",
            )  # fmt: skip
        parts["gamma"] = gr.Slider(
            0, 1, settings_values(recommended)["gamma"], step=0.001, label="Gamma",
            info="the part of the steps, from the first, in which the boxes are used",
            elem_id="rg-gamma",
        )  # fmt: skip
        with gr.Row():
            parts["num_steps"] = gr.Number(
                recommended.num_steps, label="Steps", precision=0, minimum=1, maximum=MAX_STEPS,
                min_width=100, elem_id="rg-steps",
            )  # fmt: skip
            parts["guidance_scale"] = gr.Number(
                recommended.guidance_scale, label="Guidance", minimum=0, step=0.5, min_width=100,
                elem_id="rg-guidance",
            )  # fmt: skip
            parts["seed"] = gr.Number(
                first.seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=100,
                elem_id="rg-seed",
            )  # fmt: skip
    with gr.Row():
        parts["random"] = gr.Button("Another seed", size="sm", min_width=120)
        parts["recommend"] = gr.Button("Model's settings", size="sm", min_width=120)
    parts["note"] = gr.Markdown(visible=False, elem_id="rg-note")


def add_files(parts: Parts) -> None:
    parts["file"] = gr.File(
        label="Go on with a PNG made here, or with a layout (JSON)", file_count="single",
        file_types=[".png", ".json"], type="filepath", height=130, elem_id="rg-restore",
    )  # fmt: skip
    with gr.Tabs():
        for name, label in (("command", "Command line"), ("python", "Python")):
            with gr.Tab(label):
                parts[name] = gr.Textbox(
                    "", show_label=False, container=False, interactive=False, lines=9,
                    max_lines=14, buttons=["copy"], elem_id=f"rg-{name}", elem_classes="rg-code",
                    placeholder="Run shows here what makes the same pictures.",
                )  # fmt: skip


def connect(page: gr.Blocks, parts: Parts, actions: Actions) -> None:
    form = [parts[name] for name in NAMES]
    private: dict[str, Any] = {"api_visibility": "private"}
    quick = private | {"concurrency_limit": None, "show_progress": "hidden"}
    order = gr.State(None)
    buttons = [parts["run"], parts["cancel"]]

    begun = parts["run"].click(
        actions.begin, form, [order, parts["results"], parts["command"], parts["python"]], **quick
    )
    busy = begun.success(lambda: switched(True), None, buttons, **quick)
    shown = busy.then(
        actions.show, order, parts["results"], concurrency_limit=1, show_progress="full", **private
    )
    shown.then(lambda: switched(False), None, buttons, **quick)
    parts["cancel"].click(actions.cancel, None, parts["cancel"], **quick)
    page.unload(actions.leave)

    parts["file"].upload(
        actions.restore, [parts["file"], parts["model"]], [*form, parts["file"], parts["note"]],
        **quick,
    )  # fmt: skip
    parts["examples"].select(actions.example, parts["model"], [*form, parts["note"]], **quick)
    for event in (parts["recommend"].click, parts["model"].input):
        event(actions.recommend, form, [*form, parts["note"]], **quick)
    parts["random"].click(None, None, parts["seed"], js=RANDOM_SEED, **private)
    parts["boxes"].change(None, parts["boxes"], None, js=TOGGLE_BOXES, **private)
    names = ("extras", "coupling", "method", "under")
    for event in (parts["columns"].change, parts["under"].change):
        event(
            lambda columns, under: [gr.update(visible=on) for on in extras(columns, under)],
            [parts["columns"], parts["under"]], [parts[name] for name in names], **quick,
        )  # fmt: skip


def switched(running: bool) -> list[Any]:
    """The buttons Run and Cancel."""
    return [
        gr.update(interactive=not running),
        gr.update(interactive=running, value="Cancel"),
    ]


def extras(columns: list[str], under: str) -> tuple[bool, bool, bool, bool]:
    """Whether the row below the columns, coupling, method and under matter."""
    guided = GUIDED in columns
    coupled = COUPLED in columns or guided and under == COUPLED
    return guided or coupled, coupled, guided, guided


def look() -> dict[str, Any]:
    """The arguments of `launch` that say how the page looks."""
    theme = Default(primary_hue="blue", neutral_hue="stone", font=FONT, font_mono=MONO)
    script = (HERE / "page.js").read_text("utf-8")
    return {"theme": theme, "css_paths": HERE / "style.css", "head": f"<script>{script}</script>"}
