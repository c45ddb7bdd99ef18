"""The emoji world: scenes of pictograms with captions and boxes, made from an integer seed.

A small stand-in for COCO with GLIGEN's division of labor: phrases and boxes say which object is
where; only the caption gives the setting, the style, the colors of objects, and the objects without
a box. An example depends only on (config, artwork, seed).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from reground_jax.emoji.artwork import FAMILIES, Artwork
from reground_jax.emoji.backgrounds import SETTINGS, background
from reground_jax.emoji.captions import UPSIDE_DOWN, Group, caption
from reground_jax.emoji.categories import CATEGORIES, SMALL_CATEGORIES
from reground_jax.emoji.placing import MAX_COVER_REAL, cover, random_boxes, real_boxes
from reground_jax.emoji.styles import STYLES
from reground_jax.layout import Layout
from reground_jax.layout_fields import Box

TINTS: dict[str, tuple[int, int, int]] = {
    "blue": (40, 90, 250),
    "green": (40, 190, 60),
    "purple": (165, 50, 225),
    "red": (235, 40, 40),
}
# Alpha from which a pixel counts as drawn: fainter fringes must not widen the box.
DRAWN = 48
# Maximum stretch of a pictogram to fill a box with another aspect ratio.
MAX_STRETCH = 1.3
HELDOUT_START = 1 << 62
SEEDS_PER_STREAM = 1 << 40
STREAMS = 1 << 20


@dataclass(frozen=True)
class WorldConfig:
    """What can appear in scenes. The default can be learned on a CPU; LARGE is everything.

    size        pixels per side
    categories  nouns of `CATEGORIES`
    settings    names of `SETTINGS`
    styles      names of `STYLES`; "color" is drawn half of the time
    tints       names of `TINTS`
    families    artwork families used
    glyphs      how many of a category's code points are used, the clearest first
    max_objects maximum number of objects per scene, at most six
    least       minimum geometric mean of an object's sides, as a fraction of `size`
    grid        objects are placed at multiples of this many pixels, keep their aspect ratio, and
                have a longer side that is also a multiple; 1 allows any place and size. On the
                grid of the autoencoder's latents a pictogram has only a few appearances, which a
                small model learns in a fraction of the time

    Raises ValueError for an unknown name.
    """

    size: int = 64
    categories: tuple[str, ...] = SMALL_CATEGORIES
    settings: tuple[str, ...] = tuple(SETTINGS)[:8]
    styles: tuple[str, ...] = ("color", "black and white", "pencil", "pixelated")
    tints: tuple[str, ...] = ("blue", "green", "purple")
    families: tuple[str, ...] = ("noto",)
    glyphs: int = 1
    max_objects: int = 4
    least: float = 0.3
    grid: int = 8

    def __post_init__(self) -> None:
        known = {"categories": CATEGORIES, "settings": SETTINGS, "styles": STYLES, "tints": TINTS}
        for field, names in known.items():
            if wrong := [name for name in getattr(self, field) if name not in names]:
                raise ValueError(f"{field} has {wrong[0]!r}: choose from {', '.join(names)}")
        if all(SETTINGS[name].plain for name in self.settings):
            raise ValueError(f"settings are {self.settings}: add one that shows without color")


LARGE = WorldConfig(
    size=128,
    categories=tuple(CATEGORIES),
    settings=tuple(SETTINGS),
    styles=tuple(STYLES),
    tints=tuple(TINTS),
    families=FAMILIES,
    glyphs=2,
    max_objects=6,
    least=0.21,
    grid=1,
)


@dataclass(frozen=True)
class Example:
    """One scene.

    image   uint8 [S, S, 3] sRGB
    layout  prompt: the caption. phrases, boxes: those of the objects with a box ("a cat")
    facts   setting: name; time: "day" or "night"; setting_told: whether the caption gives the
            setting; style: name; objects: list of {category, attribute (a tint, "upside down" or
            None), box (xyxy, 0..1, tight around its drawn pixels), boxed (whether layout has it),
            family, code}
    labels  the category of the topmost object at each pixel, as its index in the config's
            categories plus 1; 0 is background
    """

    image: UInt8[np.ndarray, "S S 3"]
    layout: Layout
    facts: dict[str, Any]
    labels: UInt8[np.ndarray, "S S"]


@dataclass(frozen=True)
class Sprite:
    """A pictogram as drawn: premultiplied RGBA, and its top left corner on the canvas."""

    pixels: UInt8[np.ndarray, "h w 4"]
    left: int
    top: int

    @property
    def drawn(self) -> Bool[np.ndarray, "h w"]:
        """Which pixels count as drawn."""
        return self.pixels[..., 3] >= DRAWN

    def within(self, canvas: np.ndarray) -> np.ndarray:
        """The part of `canvas` that the sprite covers, as a view."""
        height, width = self.pixels.shape[:2]
        return canvas[self.top : self.top + height, self.left : self.left + width]

    def box(self, size: int) -> Box:
        """Tight box around pixels of alpha >= DRAWN, in fractions of a canvas of `size` pixels."""
        xs, ys = np.flatnonzero(self.drawn.any(0)), np.flatnonzero(self.drawn.any(1))
        x0, x1 = self.left + int(xs[0]), self.left + int(xs[-1]) + 1
        y0, y1 = self.top + int(ys[0]), self.top + int(ys[-1]) + 1
        return x0 / size, y0 / size, x1 / size, y1 / size


class World:
    """Generates the examples of a WorldConfig from `artwork`.

    Raises ValueError if the artwork lacks a category in the configured families.
    """

    def __init__(self, config: WorldConfig, artwork: Artwork):
        self.config = config
        # Premultiplied images by (noun, attribute), one per pictogram. Already reduced to the
        # largest useful size, since resizing is most of the work.
        self._art: dict[tuple[str, str | None], list[tuple[str, str, Image.Image]]] = {}
        for noun in config.categories:
            codes = CATEGORIES[noun].codes[: config.glyphs]
            chosen = [
                pictogram
                for pictogram in artwork.get(noun, ())
                if pictogram.family in config.families and pictogram.code in codes
            ]
            if not chosen:
                raise ValueError(
                    f"artwork has no {noun!r} in {', '.join(config.families)}: fetch it again "
                    "with reground_jax.emoji.artwork, or leave the category out"
                )
            for attribute in (None, UPSIDE_DOWN, *config.tints):
                self._art[noun, attribute] = [
                    (p.family, p.code, _prepared(p.pixels, attribute, config.size)) for p in chosen
                ]

    def example(self, seed: int) -> Example:
        """The example for `seed`, 0 <= seed < 2**63."""
        rng = np.random.default_rng(seed)
        style = self._style(rng)
        setting, night = self._setting(rng, style)
        groups = self._groups(rng, style)
        objects, sprites = self._objects(rng, groups, STYLES[style].least)
        groups = _present(groups, objects)
        setting_told = bool(night or rng.random() < 0.9)
        text = caption(
            groups, rng, setting=setting if setting_told else None, night=night, style=style
        )
        unboxed = self._unboxed(rng, groups)
        for thing in objects:
            thing["boxed"] = thing["category"] not in unboxed
        canvas = background(setting, self.config.size, rng, night=night).astype(np.float32)
        labels = np.zeros(canvas.shape[:2], np.uint8)
        drawn = zip(objects, sprites, strict=True)
        for thing, sprite in sorted(drawn, key=lambda pair: -pair[1].pixels.size):  # small on top
            blend(canvas, sprite)
            label = self.config.categories.index(thing["category"]) + 1
            sprite.within(labels)[sprite.drawn] = label
        facts = {
            "setting": setting,
            "time": "night" if night else "day",
            "setting_told": setting_told,
            "style": style,
            "objects": objects,
        }
        image = STYLES[style].apply((canvas + 0.5).astype(np.uint8))
        return Example(image, _layout(text, objects, seed), facts, labels)

    def batch(self, index: int, batch_size: int, seed: int = 0) -> list[Example]:
        """Training batch number `index` of stream `seed`; never contains a held-out example.

        Examples are numbered consecutively within a stream, whatever the batch size. Raises
        ValueError past 2**40 examples or 2**20 streams.
        """
        first = index * batch_size
        if not (0 <= seed < STREAMS and 0 <= first <= SEEDS_PER_STREAM - batch_size):
            raise ValueError(
                f"batch {index} of {batch_size} in stream {seed} does not exist: streams are "
                f"0..{STREAMS - 1}, of {SEEDS_PER_STREAM} examples each; choose smaller numbers"
            )
        start = seed * SEEDS_PER_STREAM + first
        return [self.example(start + i) for i in range(batch_size)]

    def heldout(self, n: int) -> list[Example]:
        """The first `n` examples of the fixed held-out set, whose seeds occur in no batch."""
        return [self.example(HELDOUT_START + i) for i in range(n)]

    def _style(self, rng: np.random.Generator) -> str:
        others = [style for style in self.config.styles if style != "color"]
        if "color" in self.config.styles and (not others or rng.random() < 0.5):
            return "color"
        return others[rng.integers(len(others))]

    def _setting(self, rng: np.random.Generator, style: str) -> tuple[str, bool]:
        names = [
            name
            for name in self.config.settings
            if STYLES[style].colors or not SETTINGS[name].plain
        ]
        name = names[rng.integers(len(names))]
        return name, bool(SETTINGS[name].nights and rng.random() < 0.25)

    def _groups(self, rng: np.random.Generator, style: str) -> list[Group]:
        """Groups of distinct categories, with 1 to max_objects objects in total."""
        most = self.config.max_objects if STYLES[style].least == 1 else 2
        weights = np.array([0.3, 0.34, 0.22, 0.14, 0.07, 0.05])[:most]
        total = int(rng.choice(most, p=weights / weights.sum())) + 1
        nouns = rng.permutation(np.array(self.config.categories, object))
        groups: list[Group] = []
        while total:
            count = int(rng.integers(1, total + 1)) if rng.random() < 0.35 else 1
            noun = str(nouns[len(groups)])
            groups.append(Group(noun, count, self._attribute(rng, noun, style)))
            total -= count
        return groups

    def _attribute(self, rng: np.random.Generator, noun: str, style: str) -> str | None:
        category, draw = CATEGORIES[noun], rng.random()
        tints = [tint for tint in self.config.tints if tint not in category.colors]
        if draw < 0.3:
            return tints[rng.integers(len(tints))] if STYLES[style].colors and tints else None
        return UPSIDE_DOWN if draw < 0.38 and category.upright else None

    def _objects(
        self, rng: np.random.Generator, groups: Sequence[Group], scale: float
    ) -> tuple[list[dict[str, Any]], list[Sprite]]:
        """Facts and sprites of all objects that find room, in the order of `groups`."""
        size, least, grid = self.config.size, self.config.least * scale, self.config.grid
        chosen, aspects = [], []
        for group in groups:
            arts = self._art[group.noun, group.attribute]
            for _ in range(group.count):
                family, code, art = arts[rng.integers(len(arts))]
                chosen.append((group, family, code, art))
                aspects.append(art.width / art.height)
        flips = rng.random(len(chosen)) < 0.5
        arts = list(zip((art for *_, art in chosen), flips.tolist(), strict=True))
        sprites: list[Sprite] = []
        if rng.random() < 0.4:
            boxes = real_boxes(len(chosen), rng)
            sprites = [fit(*a, b, size, least, grid) for a, b in zip(arts, boxes, strict=False)]
        if not sprites or not _apart([sprite.box(size) for sprite in sprites]):
            boxes = random_boxes(aspects, rng, least=least)
            sprites = [fit(*a, b, size, least, grid) for a, b in zip(arts, boxes, strict=False)]
            while not _apart([sprite.box(size) for sprite in sprites]):  # the grid moved them
                sprites.pop()
        objects = [
            {
                "category": group.noun,
                "attribute": group.attribute,
                "box": sprite.box(size),
                "boxed": True,
                "family": family,
                "code": code,
            }
            for (group, family, code, _), sprite in zip(chosen, sprites, strict=False)
        ]
        return objects, sprites

    def _unboxed(self, rng: np.random.Generator, groups: Sequence[Group]) -> set[str]:
        """Categories that only the caption names, since COCO's boxes also omit objects."""
        if len(groups) < 2 or rng.random() < 0.75:
            return set()
        return {groups[int(rng.integers(len(groups)))].noun}


def blend(canvas: Float32[np.ndarray, "S S 3"], sprite: Sprite) -> None:
    """Draw `sprite` over `canvas` (0..255), in place."""
    pixels, covered = sprite.pixels.astype(np.float32), sprite.within(canvas)
    covered *= 1 - pixels[..., 3:] / 255
    covered += pixels[..., :3]


def fit(art: Image.Image, flip: bool, box: Box, size: int, least: float, grid: int = 1) -> Sprite:
    """`art` centered in `box`, stretched by at most MAX_STRETCH, and at least `least` in size.

    art is premultiplied ("RGBa"); flip mirrors it; box is in fractions of a canvas of `size`
    pixels; least and grid are as in WorldConfig. A grid shifts art slightly, without stretching.
    """
    x0, y0, x1, y1 = (size * v for v in box)
    aspect = art.width / art.height
    stretch = MAX_STRETCH if grid == 1 else 1.0
    target = min(max((x1 - x0) / (y1 - y0), aspect / stretch), aspect * stretch)
    width = min(x1 - x0, (y1 - y0) * target)
    height = width / target
    longest = max(width, height)
    smallest = least * size * float(np.sqrt(longest / min(width, height)))
    side = max(longest, smallest)
    if grid > 1:
        side = grid * max(round(side / grid), -(-smallest // grid))
    w, h = (min(size, max(1, round(side / longest * v))) for v in (width, height))
    pixels = np.asarray(art.resize((w, h), Image.Resampling.BILINEAR))
    left = min(grid * round(max((x0 + x1 - w) / 2, 0) / grid), (size - w) // grid * grid)
    top = min(grid * round(max((y0 + y1 - h) / 2, 0) / grid), (size - h) // grid * grid)
    return Sprite(pixels[:, ::-1] if flip else pixels, left, top)


def _prepared(pixels: np.ndarray, attribute: str | None, size: int) -> Image.Image:
    """RGBA pixels with the attribute applied, premultiplied, and no larger than needed."""
    if attribute == UPSIDE_DOWN:
        pixels = pixels[::-1]
    elif attribute is not None:
        pixels = _tinted(pixels, np.array(TINTS[attribute], np.float32))
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGBa")
    scale = min(1.0, 0.8 * size / max(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _tinted(pixels: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Replaces hue and keeps lightness: dark stays dark, white becomes a light tint."""
    light = pixels[..., :3].astype(np.float32) @ np.array([0.3, 0.55, 0.15], np.float32) / 255
    rgb = tint * (0.3 + 0.75 * light)[..., None] + (90 * light**3)[..., None]
    return np.concatenate([np.clip(rgb, 0, 255).astype(np.uint8), pixels[..., 3:]], axis=2)


def _apart(boxes: Sequence[Box]) -> bool:
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    return all(cover(a, b) <= MAX_COVER_REAL for a, b in pairs)


def _present(groups: Sequence[Group], objects: Sequence[dict[str, Any]]) -> list[Group]:
    """The groups, with counts of the objects that found room, so that captions are true."""
    names = [thing["category"] for thing in objects]
    counted = [dataclasses.replace(group, count=names.count(group.noun)) for group in groups]
    return [group for group in counted if group.count]


def _layout(text: str, objects: Sequence[dict[str, Any]], seed: int) -> Layout:
    boxed = [thing for thing in objects if thing["boxed"]]
    return Layout(
        prompt=text,
        phrases=[CATEGORIES[thing["category"]].phrase for thing in boxed],
        boxes=[thing["box"] for thing in boxed],
        id=f"emoji-{seed}",
    )
