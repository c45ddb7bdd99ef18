"""The page's fields as one value: what they ask for, and what they show of a request."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from reground_jax.app import canvas
from reground_jax.app.examples import EXAMPLES
from reground_jax.app.models import Models
from reground_jax.app.order import SHOWN, Choice, Order, checked_order
from reground_jax.layout import Layout
from reground_jax.layout_fields import Box
from reground_jax.settings import Settings


@dataclass(frozen=True)
class Form:
    """What the fields hold, in this order."""

    model: str
    canvas: dict[str, Any] | None  # the value of gradio-image-annotation: image, boxes
    prompt: str
    negative_prompt: str
    columns: list[str]
    coupling: float
    method: str | None
    under: str
    gamma: float
    num_steps: Any
    guidance_scale: Any
    solver: str
    seed: Any
    base: Settings  # where the settings come from that have no field
    exact: tuple[Box, ...]  # boxes that were put on the canvas

    def order(self, models: Models) -> Order:
        """The request, checked against its model. Raises ValueError in words for the page."""
        choice = Choice(
            tuple(self.columns), float(self.coupling), str(self.method or ""), self.under
        )
        shown = {name: getattr(self, name) for name in SHOWN}
        settings = dataclasses.replace(self.base, **shown)
        order = checked_order(self.model, self.layout(models), settings, choice, self.seed)
        models[self.model].check(order)
        return order

    def layout(self, models: Models) -> Layout:
        """Raises ValueError for a box without a label."""
        size = sides(models, self.model, self.base)
        drawn = (self.canvas or {}).get("boxes") or []
        phrases, boxes = canvas.layout_boxes(drawn, size, self.exact)
        return Layout(
            (self.prompt or "").strip(), phrases, boxes, (self.negative_prompt or "").strip()
        )


NAMES = tuple(field.name for field in dataclasses.fields(Form))


def sides(models: Models, model: str, settings: Settings) -> tuple[int, int]:
    """(width, height) of the canvas."""
    return canvas.canvas_size(*models[model].size(settings))


def layout_values(models: Models, model: str, settings: Settings, layout: Layout) -> dict[str, Any]:
    """The fields that show a layout."""
    size = sides(models, model, settings)
    return {
        "canvas": {"image": canvas.blank(size), "boxes": canvas.drawn_boxes(layout, size)},
        "prompt": layout.prompt,
        "negative_prompt": layout.negative_prompt,
        "exact": layout.boxes,
    }


def settings_values(settings: Settings) -> dict[str, Any]:
    """The fields that show settings, and the state that keeps the others."""
    values = {name: getattr(settings, name) for name in SHOWN} | {"base": settings}
    if isinstance(settings.gamma, tuple):  # three parts, which no slider shows
        values["gamma"] = 1.0
    return values


def choice_values(choice: Choice) -> dict[str, Any]:
    """The fields that show the columns."""
    return dataclasses.asdict(choice) | {"columns": list(choice.columns)}


def opening(models: Models) -> Order:
    """What the page shows first: an example, as its first model recommends."""
    model = models[models.names[0]]
    return checked_order(model.name, EXAMPLES[0], model.recommended, Choice(), 0)
