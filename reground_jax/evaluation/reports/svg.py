"""Parts of a figure as SVG: text, lines, axes."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

INK, MUTED, RULE = "#1f2328", "#656d76", "#e5e3dc"


def document(width: float, height: float, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def axis(values: Sequence[float]) -> list[float]:
    """Four to nine round ticks that span the values."""
    low, high = min(values), max(values)
    span = max(high - low, 1.0)  # percent: equal values still need an axis
    step = 10 ** math.floor(math.log10(span))
    while span / step > 7:
        step *= 2
    while span / step < 3:
        step /= 2
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * tick, 6) for tick in range(first, max(last, first + 1) + 1)]


def line(x0: float, y0: float, x1: float, y1: float, color: str, opacity: float = 1) -> str:
    return (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{color}" '
        f'stroke-opacity="{opacity:g}"/>'
    )


def dot(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'


def text(x: float, y: float, words: str, anchor: str, color: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">'
        f"{escape(words)}</text>"
    )
