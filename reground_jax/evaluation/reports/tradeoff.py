"""The trade-off between boxes and text as an SVG: one line per wiring, one point per gamma."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reground_jax.evaluation.reports.svg import MUTED, RULE, axis, document, dot, line, text
from reground_jax.evaluation.statistics import Interval

WIDTH, HEIGHT = 520, 460  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 18, 40, 64  # margins around a panel's frame
LABEL_WIDTH, LABEL_HEIGHT = 40, 15  # of the longest gamma label

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
    x_axis = axis([value for curve in curves for point in curve.points for value in point.x])
    y_axis = axis([value for curve in lines for point in curve.points for value in point.y])
    width = WIDTH * len(panels)
    parts = []
    for column, panel in enumerate(panels):
        parts += _panel(panel, column * WIDTH, x_axis, y_axis)
        parts.append(text((column + 0.5) * WIDTH, HEIGHT - 18, x_title, "middle"))
    parts += [
        f'<g transform="translate(20 {HEIGHT / 2}) rotate(-90)">',
        text(0, 0, y_title, "middle") + "</g>",
        *_legend(panels[0].curves),
    ]
    return document(width, HEIGHT, parts)


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

    parts = [text(left + LEFT, TOP - 16, panel.title, "start"), *_grid(x_axis, y_axis, place)]
    for curve in panel.curves:
        parts += _curve(curve, place)
    return parts + _labels(panel.curves, place, left + WIDTH, y_axis)


def _grid(x_axis: Sequence[float], y_axis: Sequence[float], place: Place) -> list[str]:
    parts = []
    for x in x_axis:
        (left, top), (_, bottom) = place(x, y_axis[-1]), place(x, y_axis[0])
        parts.append(line(left, top, left, bottom, RULE))
        parts.append(text(left, bottom + 20, f"{x:g}", "middle", MUTED))
    for y in y_axis:
        (left, up), (right, _) = place(x_axis[0], y), place(x_axis[-1], y)
        parts.append(line(left, up, right, up, RULE))
        parts.append(text(left - 8, up + 4, f"{y:g}", "end", MUTED))
    return parts


def _curve(curve: Curve, place: Place) -> list[str]:
    centers = [place(point.x[0], point.y[0]) for point in curve.points]
    parts = []
    for point in curve.points:  # intervals first, so that they lie under the line and points
        (x, left, right), (y, low, high) = point.x, point.y
        for start, stop in (((left, y), (right, y)), ((x, low), (x, high))):
            parts.append(line(*place(*start), *place(*stop), curve.color, 0.45))
    if len(centers) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in centers)
        dashes = ' stroke-dasharray="6 4"' if curve.dashed else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{curve.color}" '
            f'stroke-width="2"{dashes}/>'
        )
    for x, y in centers:
        parts.append(dot(x, y, curve.color))
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
            parts.append(text(across, y, label, anchor, curve.color))
    return [*parts, "</g>"]


def _legend(curves: Sequence[Curve]) -> list[str]:
    unnamed = [c for c in curves if any(point.label != c.name for point in c.points)]
    parts = []
    for row, curve in enumerate(unnamed):
        x, y = LEFT + 16, HEIGHT - BOTTOM - 16 - 20 * (len(unnamed) - 1 - row)
        parts.append(dot(x, y - 4, curve.color))
        parts.append(text(x + 12, y, curve.name, "start"))
    return parts
