"""The emoji world's object categories: COCO's nouns, and the pictograms that depict them.

Ordered by frequency in LayoutGPT's NSR-1K counting prompts. Frequent nouns without a clear
pictogram (bench, dining table, parking meter, fire hydrant, oven) are omitted.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """One kind of object.

    noun      COCO's singular name, used in phrases and captions
    codes     hexadecimal Unicode code points of its pictograms, the clearest first
    plural    plural used in captions
    colors    the pictogram's own colors: a tint of the same name would not be visible
    upright   whether it is recognizably upside down when flipped
    """

    noun: str
    codes: tuple[str, ...]
    plural: str
    colors: tuple[str, ...] = ()
    upright: bool = True

    @property
    def phrase(self) -> str:
        """The noun with its article: "a cat", "an airplane"."""
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"


def _category(
    noun: str,
    codes: str,
    *,
    plural: str | None = None,
    colors: tuple[str, ...] = (),
    upright: bool = True,
) -> Category:
    return Category(noun, tuple(codes.split()), plural or noun + "s", colors, upright)


CATEGORIES: dict[str, Category] = {
    category.noun: category
    for category in (
        _category("car", "1f697 1f699 1f698", colors=("red", "blue")),
        _category("cat", "1f408 1f431"),
        _category("dog", "1f436 1f415 1f429"),
        _category("bed", "1f6cf", colors=("blue",)),
        _category("giraffe", "1f992"),
        _category("zebra", "1f993"),
        _category("traffic light", "1f6a6", upright=False),
        _category("truck", "1f69a 1f69b", colors=("green",)),
        _category("bird", "1f426 1f54a", colors=("red", "blue", "purple")),
        _category("pizza", "1f355", upright=False),
        _category("vase", "1f3fa"),
        _category("airplane", "2708 1f6e9", colors=("blue",), upright=False),
        _category("train", "1f682 1f686 1f685", colors=("blue",)),
        _category("chair", "1fa91"),
        _category("motorcycle", "1f3cd 1f6f5", colors=("red", "green")),
        _category("clock", "23f0 1f570 1f550", colors=("red",), upright=False),
        _category("donut", "1f369", upright=False, colors=("pink",)),
        _category("cow", "1f404 1f42e"),
        _category("broccoli", "1f966", plural="broccoli", upright=False, colors=("green",)),
        _category("elephant", "1f418"),
        _category("horse", "1f40e 1f434"),
        _category("boat", "26f5 1f6a4", colors=("blue",)),
        _category("teddy bear", "1f9f8"),
        _category("bus", "1f68c 1f68d", plural="buses", colors=("blue",)),
        _category("laptop", "1f4bb", colors=("blue",)),
        _category("couch", "1f6cb", plural="couches", colors=("blue", "green")),
        _category("suitcase", "1f9f3", colors=("blue",)),
        _category("bear", "1f43b"),
        _category("sheep", "1f411", plural="sheep"),
        _category("potted plant", "1fab4", colors=("green",)),
        _category("hot dog", "1f32d", upright=False),
        _category("stop sign", "1f6d1", upright=False, colors=("red",)),
        _category("keyboard", "2328", upright=False),
        _category("bowl", "1f963", colors=("red", "blue")),
        _category("carrot", "1f955", upright=False),
        _category("tv", "1f4fa", colors=("blue",)),
        _category("mouse", "1f5b1", plural="mouses", upright=False),
        _category("book", "1f4d5 1f4d6", colors=("red", "blue"), upright=False),
        _category("sandwich", "1f96a", plural="sandwiches", upright=False),
        _category("banana", "1f34c", upright=False),
        _category("bicycle", "1f6b2", colors=("red",)),
        _category("cake", "1f382 1f370"),
        _category("orange", "1f34a", upright=False),
        _category("umbrella", "2602 2614", colors=("purple", "blue")),
        _category("kite", "1fa81", colors=("blue",), upright=False),
        _category("cell phone", "1f4f1", colors=("blue",), upright=False),
        _category("cup", "2615"),
        _category("knife", "1f52a", plural="knives", upright=False),
        _category("apple", "1f34e", colors=("red",)),
        _category("scissors", "2702", plural="scissors", upright=False),
        _category("sports ball", "26bd 1f3c0", upright=False),
        _category("backpack", "1f392", colors=("red",)),
        _category("handbag", "1f45c", colors=("purple",)),
        _category("wine glass", "1f377", plural="wine glasses", colors=("purple", "red")),
        _category("toilet", "1f6bd"),
        _category("skateboard", "1f6f9", colors=("purple", "red")),
        _category("toothbrush", "1faa5", plural="toothbrushes", upright=False),
        _category("tie", "1f454", colors=("blue",)),
        _category("spoon", "1f944", upright=False),
        _category("frisbee", "1f94f", colors=("blue",), upright=False),
    )
}

# What a CPU can learn at 64 pixels: the most frequent nouns, still distinguishable at 16.
SMALL_CATEGORIES: tuple[str, ...] = tuple(CATEGORIES)[:24]
