"""Backgrounds of the emoji world's scenes: one painter per setting.

A painter draws on a canvas of twice the image size (downsampling smooths the edges) in units of
the image size, with randomness from `rng` only. `dark` turns day into night.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Number = float | int  # beartype does not take an int for a float
Point = tuple[Number, Number]


class Canvas:
    """Draws with Pillow in fractions of the image; at night, everything but lights is darkened."""

    def __init__(self, size: int, dark: bool):
        self.scale, self.dark = 2 * size, dark
        self.image = Image.new("RGB", (2 * size, 2 * size))
        self.draw = ImageDraw.Draw(self.image)

    def _color(self, color: Color) -> Color:
        if not self.dark:
            return color
        r, g, b = color
        return int(0.48 * r), int(0.5 * g), int(0.55 * b + 14)

    def box(self, x0: Number, y0: Number, x1: Number, y1: Number, color: Color) -> None:
        corners = [self.scale * v for v in (x0, y0, x1, y1)]
        self.draw.rectangle(corners, fill=self._color(color))

    def polygon(self, points: list[Point], color: Color) -> None:
        self.draw.polygon([(self.scale * x, self.scale * y) for x, y in points], self._color(color))

    def line(self, points: list[Point], width: Number, color: Color) -> None:
        points = [(self.scale * x, self.scale * y) for x, y in points]
        self.draw.line(points, self._color(color), max(1, round(width * self.scale)))

    def disc(self, x: Number, y: Number, radius: Number, color: Color) -> None:
        corners = [self.scale * v for v in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(corners, fill=self._color(color))

    def light(self, x: Number, y: Number, radius: Number, color: Color) -> None:
        """A disc that stays bright at night."""
        corners = [self.scale * v for v in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(corners, fill=color)


def _sky(canvas: Canvas, rng: np.random.Generator, color: Color) -> None:
    """Day: a color and a sun. Night: dark blue, a moon and stars."""
    canvas.box(0, 0, 1, 1, (30, 36, 100) if canvas.dark else color)
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.16)
    if not canvas.dark:
        canvas.light(x, y, 0.07, (255, 225, 90))
        return
    for sx, sy in rng.uniform(0, 1, (14, 2)):
        canvas.light(sx, 0.42 * sy, 0.011, (235, 235, 215))
    canvas.light(x, y, 0.075, (245, 240, 200))


def _wave(y: Number, height: Number, count: Number, phase: Number) -> list[Point]:
    """A sine wave across the image, as points from left to right."""
    xs = [i / 24 for i in range(25)]
    return [(x, y + height * math.sin(2 * math.pi * (count * x + phase))) for x in xs]


def _below(edge: list[Point]) -> list[Point]:
    return [*edge, (1, 1), (0, 1)]


def beach(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.26, 0.36)
    shore = horizon + rng.uniform(0.2, 0.28)
    _sky(canvas, rng, (150, 215, 250))
    canvas.box(0, horizon, 1, 1, (30, 130, 205))
    for y in (0.3, 0.65):
        edge = _wave(horizon + y * (shore - horizon), 0.008, 4, rng.uniform())
        canvas.line(edge, 0.012, (130, 200, 240))
    edge = _wave(shore, 0.025, 1, rng.uniform())
    canvas.polygon(_below([(x, y - 0.03) for x, y in edge]), (245, 250, 255))
    canvas.polygon(_below(edge), (240, 215, 150))


def snow(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.32, 0.42)
    _sky(canvas, rng, (185, 200, 220))
    for x in np.arange(0.05, 1, 0.18) + rng.uniform(-0.04, 0.04, 6):
        top = horizon - rng.uniform(0.14, 0.22)
        for step in range(3):  # a three-tiered fir with snow on top
            y, half = top + 0.05 * step, 0.04 + 0.02 * step
            canvas.polygon([(x, y), (x - half, y + 0.1), (x + half, y + 0.1)], (50, 110, 90))
        canvas.polygon(
            [(x, top), (x - 0.025, top + 0.06), (x + 0.025, top + 0.06)], (250, 250, 255)
        )
    canvas.polygon(_below(_wave(horizon, 0.02, 1, rng.uniform())), (242, 246, 252))
    canvas.line(_wave(rng.uniform(0.6, 0.75), 0.02, 1, rng.uniform()), 0.012, (205, 218, 236))
    for x, y in rng.uniform(0, 1, (28, 2)):
        canvas.disc(x, y, 0.014, (255, 255, 255) if y < horizon else (205, 218, 236))


def grass(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.3, 0.4)
    _sky(canvas, rng, (160, 215, 250))
    canvas.polygon(_below(_wave(horizon, 0.04, 1, rng.uniform())), (125, 195, 95))
    canvas.polygon(_below(_wave(horizon + 0.14, 0.03, 0.7, rng.uniform())), (105, 180, 75))
    for x, y in rng.uniform(0, 1, (22, 2)):
        y = horizon + 0.1 + (0.95 - horizon) * y
        for lean in (-0.025, 0, 0.025):  # a tuft of three blades of grass
            canvas.line([(x, y), (x + 1.2 * lean, y - 0.055)], 0.012, (45, 105, 30))


def desert(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.36, 0.46)
    _sky(canvas, rng, (250, 205, 150))
    canvas.polygon(_below(_wave(horizon, 0.06, 1.2, rng.uniform())), (225, 160, 85))
    for x in (rng.uniform(0.06, 0.4), rng.uniform(0.6, 0.94)):
        top, foot, green = horizon - 0.2, horizon + 0.1, (45, 100, 50)
        canvas.line([(x, top), (x, foot)], 0.06, green)
        for side, y in ((-1, horizon - 0.02), (1, horizon - 0.07)):  # the arms of the cactus
            canvas.line([(x, y), (x + 0.09 * side, y), (x + 0.09 * side, y - 0.1)], 0.04, green)
    canvas.polygon(_below(_wave(horizon + 0.17, 0.05, 0.8, rng.uniform())), (200, 128, 60))
    canvas.polygon(_below(_wave(horizon + 0.38, 0.04, 0.6, rng.uniform())), (172, 102, 45))


def street(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, rng, (185, 215, 235))
    road, x = rng.uniform(0.52, 0.6), rng.uniform(-0.1, 0)
    walls = ((170, 95, 80), (150, 150, 165), (200, 170, 130), (120, 130, 150))
    glow = (255, 225, 130) if canvas.dark else (215, 235, 250)
    for wall in rng.permutation(np.array(walls)).tolist() * 2:
        width, top = rng.uniform(0.18, 0.28), rng.uniform(0.06, 0.26)
        canvas.box(x, top, x + width, road, (wall[0], wall[1], wall[2]))
        for row in np.arange(top + 0.045, road - 0.08, 0.1):
            for column in np.arange(x + 0.035, x + width - 0.05, 0.08):
                left, up, right, down = (
                    canvas.scale * v for v in (column, row, column + 0.04, row + 0.05)
                )
                canvas.draw.rectangle((left, up, right, down), fill=glow)
        x += width
    canvas.box(0, road, 1, road + 0.06, (205, 205, 200))
    canvas.box(0, road + 0.06, 1, 1, (95, 98, 105))
    for dash in np.arange(rng.uniform(-0.2, 0), 1, 0.24):
        canvas.box(dash, road + 0.22, dash + 0.13, road + 0.25, (250, 240, 200))


def night_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.box(0, 0, 1, 1, (22, 26, 66))
    for x, y in rng.uniform(0, 1, (45, 2)):
        canvas.light(x, y, 0.012, (240, 240, 220))
    canvas.light(rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.25), 0.1, (245, 240, 200))


def sea(canvas: Canvas, rng: np.random.Generator) -> None:
    """Underwater: blue water, bubbles, sand and seaweed."""
    canvas.box(0, 0, 1, 1, (40, 135, 200))
    canvas.box(0, 0, 1, 0.2, (70, 165, 220))
    canvas.polygon(_below(_wave(0.88, 0.02, 1, rng.uniform())), (220, 200, 140))
    for x in rng.uniform(0, 1, 5):
        edge = [(x + 0.02 * math.sin(9 * t), 0.95 - 0.3 * t) for t in np.linspace(0, 1, 9)]
        canvas.line(edge, 0.025, (40, 140, 90))
    for x, y in rng.uniform(0, 1, (18, 2)):
        canvas.disc(x, 0.85 * y, 0.018, (190, 230, 250))


def forest(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, rng, (175, 215, 220))
    canvas.box(0, 0.5, 1, 1, (95, 130, 65))
    for x in np.arange(0, 1.1, 0.16) + rng.uniform(-0.04, 0.04, 7):
        canvas.box(x - 0.02, 0.3, x + 0.02, 0.58, (105, 75, 50))
        for dx, dy in ((-0.06, 0.26), (0.06, 0.26), (0, 0.18)):
            canvas.disc(x + dx, dy, 0.09, (45, 105, 55))


def mountains(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, rng, (165, 205, 240))
    for x in np.array([0.15, 0.5, 0.85]) + rng.uniform(-0.08, 0.08, 3):
        top = rng.uniform(0.14, 0.24)
        canvas.polygon([(x, top), (x - 0.35, 0.6), (x + 0.35, 0.6)], (110, 115, 140))
        canvas.polygon([(x, top), (x - 0.09, top + 0.1), (x + 0.09, top + 0.1)], (250, 250, 255))
    canvas.polygon(_below(_wave(0.55, 0.02, 1, rng.uniform())), (130, 165, 100))


def room(canvas: Canvas, rng: np.random.Generator) -> None:
    """Indoors: wallpaper, a window, a wooden floor."""
    canvas.box(0, 0, 1, 1, (235, 220, 195))
    x, floor = rng.uniform(0.1, 0.6), rng.uniform(0.55, 0.62)
    canvas.box(x, 0.1, x + 0.3, 0.36, (250, 250, 250))
    canvas.box(x + 0.02, 0.12, x + 0.28, 0.34, (150, 205, 240))
    canvas.line([(x + 0.15, 0.12), (x + 0.15, 0.34)], 0.02, (250, 250, 250))
    canvas.box(0, floor, 1, 1, (175, 120, 75))
    for y in np.arange(floor, 1, 0.09):
        canvas.line([(0, y), (1, y)], 0.012, (135, 88, 52))


CLOTHS: tuple[tuple[Color, Color], ...] = (
    ((245, 245, 245), (225, 130, 125)),
    ((245, 245, 245), (140, 175, 220)),
    ((250, 240, 200), (165, 200, 140)),
)


def checkered(canvas: Canvas, rng: np.random.Generator) -> None:
    light, dark = CLOTHS[rng.integers(len(CLOTHS))]
    canvas.box(0, 0, 1, 1, light)
    for row in range(8):
        for column in range(row % 2, 8, 2):
            canvas.box(column / 8, row / 8, (column + 1) / 8, (row + 1) / 8, dark)


def striped(canvas: Canvas, rng: np.random.Generator) -> None:
    light, dark = CLOTHS[rng.integers(len(CLOTHS))]
    canvas.box(0, 0, 1, 1, light)
    shift = rng.uniform(0, 0.25)
    for x in np.arange(-1.25, 1.25, 0.25):
        left = float(x) + shift
        canvas.polygon([(left, 1), (left + 0.12, 1), (left + 1.12, 0), (left + 1, 0)], dark)


def dotted(canvas: Canvas, rng: np.random.Generator) -> None:
    light, dark = CLOTHS[rng.integers(len(CLOTHS))]
    canvas.box(0, 0, 1, 1, light)
    for row in range(6):
        for column in range(6):
            canvas.disc((column + 0.25 + row % 2 / 2) / 6, (row + 0.5) / 6, 0.045, dark)


def _plain(color: Color) -> Callable[[Canvas, np.random.Generator], None]:
    def paint(canvas: Canvas, rng: np.random.Generator) -> None:
        canvas.box(0, 0, 1, 1, color)

    return paint


@dataclass(frozen=True)
class Setting:
    """One place.

    where   its words in captions, including the preposition
    paint   draws it
    nights  whether night scenes exist
    plain   whether it is recognizable by color alone, and so not shown in colorless styles
    """

    where: str
    paint: Callable[[Canvas, np.random.Generator], None]
    nights: bool = False
    plain: bool = False


SETTINGS: dict[str, Setting] = {
    "beach": Setting("on a beach", beach, nights=True),
    "snow": Setting("in the snow", snow, nights=True),
    "grass": Setting("on the grass", grass, nights=True),
    "desert": Setting("in a desert", desert, nights=True),
    "city street": Setting("on a city street", street, nights=True),
    "checkered": Setting("on a checkered background", checkered),
    "striped": Setting("on a striped background", striped),
    "pink": Setting("on a pink background", _plain((250, 190, 210)), plain=True),
    "night sky": Setting("in the night sky", night_sky),
    "sea": Setting("under water", sea),
    "forest": Setting("in a forest", forest, nights=True),
    "mountains": Setting("in the mountains", mountains, nights=True),
    "room": Setting("in a room", room),
    "dotted": Setting("on a dotted background", dotted),
    "yellow": Setting("on a yellow background", _plain((250, 225, 130)), plain=True),
    "turquoise": Setting("on a turquoise background", _plain((150, 215, 210)), plain=True),
}


def background(
    setting: str, size: int, rng: np.random.Generator, *, night: bool
) -> UInt8[np.ndarray, "S S 3"]:
    """The empty scene of `setting`, sRGB."""
    canvas = Canvas(size, night)
    SETTINGS[setting].paint(canvas, rng)
    return np.asarray(canvas.image.reduce(2))
