"""The pictures of a run as HTML: a figure per column, and what can be saved of it."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.draw import phrase_colors
from reground_jax.layout import Layout

QUALITY = 90  # of previews, which are JPEG; finished pictures are PNG
EXPLAINED = {
    "Stable Diffusion": "without the boxes",
    "GLIGEN": "sequential wiring",
    "ReGround": "parallel wiring",
    "Coupled": "between the two",
}


def figures(
    columns: Mapping[str, str],
    layout: Layout,
    ratio: float,
    pictures: Mapping[str, "str | UInt8[np.ndarray, 'H W 3']"],
    names: Mapping[str, str] | None = None,
) -> str:
    """The columns' figures.

    columns: what is said of each. ratio: width over height. pictures: finished PNGs as data
    addresses, or previews. names: of the files of finished pictures.
    """
    boxes = _boxes(layout)
    parts = []
    for name, about in columns.items():
        inside = _image(name, pictures.get(name)) + boxes
        link = ""
        if names and name in names:
            link = _link(str(pictures[name]), names[name], "PNG", f"Save the picture of {name}")
        parts.append(
            f'<figure><div class="rg-frame" style="aspect-ratio: {ratio:.4f}">{inside}</div>'
            f"<figcaption><b>{html.escape(name)}</b><span>{html.escape(about)}</span>{link}"
            "</figcaption></figure>"
        )
    return f'<div class="rg-figures">{"".join(parts)}</div>'


def status(text: str, links: Sequence[str] = ()) -> str:
    """The line above the figures. It is read out by screen readers when it changes."""
    return (
        f'<p class="rg-status" role="status"><span>{html.escape(text)}</span>{"".join(links)}</p>'
    )


def layout_link(layout: Layout, name: str) -> str:
    """A link that saves the layout as JSON."""
    text = json.dumps(layout.to_json(), indent=1, ensure_ascii=False)
    address = f"data:application/json;charset=utf-8,{quote(text)}"
    return _link(address, name, "Layout (JSON)", "Save prompt and boxes")


def png_address(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _image(name: str, picture: "str | UInt8[np.ndarray, 'H W 3'] | None") -> str:
    if picture is None:
        return '<div class="rg-empty"></div>'
    if not isinstance(picture, str):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=QUALITY, subsampling=0)
        picture = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f'<img class="rg-picture" alt="{html.escape(name)}" src="{picture}">'


def _boxes(layout: Layout) -> str:
    """The boxes over a figure, which the page shows or hides."""
    colors = phrase_colors(layout.phrases)
    parts = []
    for phrase, (x0, y0, x1, y1) in zip(layout.phrases, layout.boxes, strict=True):
        place = f"left:{x0:.2%};top:{y0:.2%};width:{x1 - x0:.2%};height:{y1 - y0:.2%}"
        label = html.escape(str(phrase))
        parts.append(
            f'<div class="rg-box" style="{place};--color:{colors[phrase]}"><i>{label}</i></div>'
        )
    return "".join(parts)


def _link(address: str, file: str, text: str, title: str) -> str:
    name = html.escape(file)
    return f'<a class="rg-save" download="{name}" title="{title}" href="{address}">{text}</a>'
