"""Captions of the emoji world: how they describe a scene, and their vocabulary."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reground_jax.emoji.backgrounds import SETTINGS
from reground_jax.emoji.categories import CATEGORIES
from reground_jax.emoji.styles import STYLES

NUMBERS: tuple[str, ...] = ("no", "one", "two", "three", "four", "five", "six")
UPSIDE_DOWN = "upside down"
# Words in the templates below, and others that users are likely to add.
PLAIN_WORDS = (
    "there is are and in of with the a an image at night showing picture photo drawing scene two "
    "next to near left right"
)


@dataclass(frozen=True)
class Group:
    """`count` objects of one category that share one attribute (a tint, upside down, or none)."""

    noun: str
    count: int
    attribute: str | None = None

    def say(self, *, number: bool = False) -> str:
        """ "a blue cat", "three dogs", "an upside down bus"; `number` says "one" for "a"."""
        category = CATEGORIES[self.noun]
        name = category.noun if self.count == 1 else category.plural
        words = f"{self.attribute} {name}" if self.attribute else name
        if self.count > 1 or number:
            return f"{NUMBERS[self.count]} {words}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def listed(texts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def caption(
    groups: Sequence[Group],
    rng: np.random.Generator,
    *,
    setting: str | None,
    night: bool,
    style: str,
) -> str:
    """One caption. `setting=None` omits the place; the style "color" is never mentioned."""
    number = bool(rng.random() < 0.2)
    things = listed([group.say(number=number) for group in groups])
    place = f" {SETTINGS[setting].where}" if setting else ""
    place += " at night" if night else ""
    picture = STYLES[style].picture
    form = int(rng.integers(4))
    if style == "color":
        verb = "is" if groups[0].count == 1 else "are"
        if not setting and form % 2:
            return f"there {verb} {things} in the image"
        return (
            f"{things}{place}",
            f"there {verb} {things}{place}",
            f"{picture} of {things}{place}",
            f"{place.strip()}, {things}" if place else things,
        )[form]
    return (
        f"{picture} of {things}{place}",
        f"{things}{place}, {picture}",
        f"{picture} showing {things}{place}",
        f"{things} in {picture}{place}",
    )[form]


def vocabulary(nouns: Iterable[str], tints: Iterable[str]) -> list[str]:
    """Every word of captions with these nouns and tints, lowercase, in order of appearance.

    All settings and styles are included, so that worlds that differ only in those share token ids.
    """
    texts = [PLAIN_WORDS, ", .", *NUMBERS, *tints, UPSIDE_DOWN]
    texts += [word for noun in nouns for word in (noun, CATEGORIES[noun].plural)]
    texts += [setting.where for setting in SETTINGS.values()]
    texts += [style.picture for style in STYLES.values()]
    return list(dict.fromkeys(" ".join(texts).split()))
