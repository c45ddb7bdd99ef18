"""The trade-off between boxes and text as an SVG: one line per wiring, one point per gamma."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from reground_jax.evaluation.statistics import Interval

WIDTH, HEIGHT = 520, 460  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 18, 40, 64  # margins around a panel's frame
LABEL_WIDTH, LABEL_HEIGHT = 40, 15  # of the longest gamma label
INK, MUTED, RULE = "#1f2328", "#656d76", "#e5e3dc"

Place = Callable[[float, float], tuple[float, float]]  # values of a point -> position on the page


@dataclass(frozen=True)
class Point:
    """x and y in percent, with their intervals."""

    label: str
    x: Interval
    y: Interval


@dataclass(frozen=True)
class Curve:
    """Points in order, joined by a line. The legend names it unless its label already does.

    below: labels go below the points, so that the labels of neighboring curves do not overlap
    """

    name: str
    color: str
    points: Sequence[Point]
    dashed: bool = False
    below: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    curves: Sequence[Curve]


def tradeoff_svg(panels: Sequence[Panel], *, x_title: str, y_title: str) -> str:
    """The complete SVG: panels side by side on the same axes, with the legend in the first.

    The axes span all points, except that single-point curves do not count for y: a point off the
    axis is drawn at the edge and labeled with its y. Raises ValueError if there are no points.
    """
    curves = [curve for panel in panels for curve in panel.curves]
    if not any(curve.points for curve in curves):
        raise ValueError("there is nothing to plot: give a curve with points")
    lines = [curve for curve in curves if len(curve.points) > 1] or curves
    x_axis = _axis([value for curve in curves for point in curve.points for value in point.x])
    y_axis = _axis([value for curve in lines for point in curve.points for value in point.y])
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for column, panel in enumerate(panels):
        parts += _panel(panel, column * WIDTH, x_axis, y_axis)
        parts.append(_text((column + 0.5) * WIDTH, HEIGHT - 18, x_title, "middle"))
    parts += [
        f'<g transform="translate(20 {HEIGHT / 2}) rotate(-90)">',
        _text(0, 0, y_title, "middle") + "</g>",
        *_legend(panels[0].curves),
        "</svg>",
        "",
    ]
    return "\n".join(parts)


def _panel(
    panel: Panel, left: float, x_axis: Sequence[float], y_axis: Sequence[float]
) -> list[str]:
    def place(x: float, y: float) -> tuple[float, float]:
        y = min(max(y, y_axis[0]), y_axis[-1])
        across = (x - x_axis[0]) / (x_axis[-1] - x_axis[0])
        up = (y - y_axis[0]) / (y_axis[-1] - y_axis[0])
        return left + LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [_text(left + LEFT, TOP - 16, panel.title, "start"), *_grid(x_axis, y_axis, place)]
    for curve in panel.curves:
        parts += _curve(curve, place)
    return parts + _labels(panel.curves, place, left + WIDTH, y_axis)


def _axis(values: Sequence[float]) -> list[float]:
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
    for point in curve.points:  # intervals first, so that they lie under the line and points
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


def _labels(
    curves: Sequence[Curve], place: Place, right: float, y_axis: Sequence[float]
) -> list[str]:
    """Labels on top of all lines, last point of a curve first; overlapping labels are dropped."""
    parts = ['<g paint-order="stroke" stroke="#ffffff" stroke-width="4" stroke-linejoin="round">']
    taken: list[tuple[float, float]] = []
    for curve in curves:
        for point in reversed(curve.points):
            x, y = place(point.x[0], point.y[0])
            down = 18 if curve.below else -9
            label, value = point.label, point.y[0]
            if not y_axis[0] <= value <= y_axis[-1]:
                arrow, down = ("↓", -9) if value < y_axis[0] else ("↑", 18)
                label += f" {arrow} {value:.0f} %"
            y += down
            if not label or any(
                abs(x - other_x) < LABEL_WIDTH and abs(y - other_y) < LABEL_HEIGHT
                for other_x, other_y in taken
            ):
                continue
            taken.append((x, y))
            # No room to the right: the label ends at the point.
            across, anchor = (x + 6, "end") if x > right - RIGHT - 80 else (x - 6, "start")
            parts.append(_text(across, y, label, anchor, curve.color))
    return [*parts, "</g>"]


def _legend(curves: Sequence[Curve]) -> list[str]:
    unnamed = [c for c in curves if any(point.label != c.name for point in c.points)]
    parts = []
    for row, curve in enumerate(unnamed):
        x, y = LEFT + 16, HEIGHT - BOTTOM - 16 - 20 * (len(unnamed) - 1 - row)
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
