"""The trade-off between boxes and text as an SVG: one line per wiring, one point per gamma."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 480
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 24, 64  # margins of the frame, pixels
INK, MUTED, RULE = "#1f2328", "#656d76", "#e5e3dc"

Interval = tuple[float, float, float]  # estimate, low, high
Place = Callable[[float, float], tuple[float, float]]  # of a point, on the page


@dataclass(frozen=True)
class Point:
    """x and y in percent, with their intervals."""

    label: str
    x: Interval
    y: Interval


@dataclass(frozen=True)
class Curve:
    """Points in order; several are joined by a line and named in the legend.

    below: labels go below the points, so that those of two curves side by side stay apart
    """

    name: str
    color: str
    points: Sequence[Point]
    dashed: bool = False
    below: bool = False


def tradeoff_svg(curves: Sequence[Curve], *, x_title: str, y_title: str) -> str:
    """The whole file. Raises ValueError if there is no point."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        raise ValueError("there is nothing to plot: give a curve with points")
    x_axis = _axis([value for point in points for value in point.x])
    y_axis = _axis([value for point in points for value in point.y])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_axis[0]) / (x_axis[-1] - x_axis[0])
        up = (y - y_axis[0]) / (y_axis[-1] - y_axis[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *_grid(x_axis, y_axis, place),
        _text(WIDTH / 2, HEIGHT - 18, x_title, "middle"),
        f'<g transform="translate(20 {HEIGHT / 2}) rotate(-90)">',
        _text(0, 0, y_title, "middle") + "</g>",
    ]
    for curve in curves:
        parts += _curve(curve, place)
    for curve in curves:  # above every line
        parts += _labels(curve, place)
    parts += _legend(curves)
    return "\n".join([*parts, "</svg>", ""])


def _axis(values: Sequence[float]) -> list[float]:
    """Round ticks around the values, four to nine of them."""
    low, high = min(values), max(values)
    span = max(high - low, 1.0)  # percent: equal values have an axis, too
    step = 10 ** math.floor(math.log10(span))
    while span / step > 7:
        step *= 2
    while span / step < 3:
        step /= 2
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * tick, 6) for tick in range(first, max(last, first + 1) + 1)]


def _grid(x_axis: Sequence[float], y_axis: Sequence[float], place: Place) -> list[str]:
    parts = []
    for x in x_axis:
        (left, top), (_, bottom) = place(x, y_axis[-1]), place(x, y_axis[0])
        parts.append(_line(left, top, left, bottom, RULE))
        parts.append(_text(left, bottom + 20, f"{x:g}", "middle", MUTED))
    for y in y_axis:
        (left, up), (right, _) = place(x_axis[0], y), place(x_axis[-1], y)
        parts.append(_line(left, up, right, up, RULE))
        parts.append(_text(left - 8, up + 4, f"{y:g}", "end", MUTED))
    return parts


def _curve(curve: Curve, place: Place) -> list[str]:
    centers = [place(point.x[0], point.y[0]) for point in curve.points]
    parts = []
    for point in curve.points:  # intervals below the line and its points
        (x, left, right), (y, low, high) = point.x, point.y
        for start, stop in (((left, y), (right, y)), ((x, low), (x, high))):
            parts.append(_line(*place(*start), *place(*stop), curve.color, 0.45))
    if len(centers) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in centers)
        dashes = ' stroke-dasharray="6 4"' if curve.dashed else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{curve.color}" '
            f'stroke-width="2"{dashes}/>'
        )
    for x, y in centers:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{curve.color}"/>')
    return parts


def _labels(curve: Curve, place: Place) -> list[str]:
    parts = ['<g paint-order="stroke" stroke="#ffffff" stroke-width="4" stroke-linejoin="round">']
    for point in curve.points:
        x, y = place(point.x[0], point.y[0])
        left = x > WIDTH - 100  # no room to the right
        across, anchor = (x - 8, "end") if left else (x + 8, "start")
        down = 18 if curve.below else -8
        parts.append(_text(across, y + down, point.label, anchor, curve.color))
    return [*parts, "</g>"]


def _legend(curves: Sequence[Curve]) -> list[str]:
    lines = [curve for curve in curves if len(curve.points) > 1]
    parts = []
    for row, curve in enumerate(lines):
        x, y = LEFT + 16, HEIGHT - BOTTOM - 16 - 20 * (len(lines) - 1 - row)
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4.5" fill="{curve.color}"/>')
        parts.append(_text(x + 12, y, curve.name, "start"))
    return parts


def _line(x0: float, y0: float, x1: float, y1: float, color: str, opacity: float = 1) -> str:
    return (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{color}" '
        f'stroke-opacity="{opacity:g}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, color: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
    )
