"""Twelve layouts of things that the built-in model draws, on its grid of eighths."""

from reground_jax.layout import Layout

Box = tuple[float, float, float, float]


def _example(prompt: str, **boxes: tuple[int, int, int, int]) -> Layout:
    """boxes: by the thing, with _ for a space, the corners in eighths of the image."""
    phrases = [f"a {name.replace('_', ' ')}" for name in boxes]
    phrases = [f"an {p[2:]}" if p[2] in "aeiou" else p for p in phrases]
    return Layout(prompt, phrases, [tuple(side / 8 for side in box) for box in boxes.values()])


EXAMPLES = (
    _example("a dog and a car in the snow at night", dog=(1, 2, 4, 5), car=(4, 5, 8, 8)),
    _example(
        "a traffic light and a bus on a city street", traffic_light=(0, 0, 3, 5), bus=(3, 4, 8, 8)
    ),
    _example("a boat on a beach at night", boat=(2, 3, 7, 7)),
    _example(
        "a cow, a horse and a bird on the grass",
        cow=(0, 4, 4, 8), horse=(4, 3, 8, 8), bird=(2, 0, 5, 3),
    ),
    _example("a donut and a pizza on a pink background", donut=(0, 0, 4, 4), pizza=(4, 4, 8, 8)),
    _example("a clock and a vase on a striped background", clock=(1, 0, 5, 4), vase=(4, 4, 7, 8)),
    _example("a giraffe and a zebra in a desert", giraffe=(0, 1, 4, 7), zebra=(4, 3, 8, 7)),
    _example("an airplane and a train in the snow", airplane=(0, 0, 5, 4), train=(3, 4, 8, 8)),
    _example("a teddy bear and a chair on a checkered background",
             teddy_bear=(0, 2, 4, 7), chair=(4, 2, 8, 7)),
    _example("a black and white photo of a cat and a vase", cat=(0, 3, 4, 8), vase=(5, 1, 8, 5)),
    _example("a blue truck and a green car on a city street at night",
             blue_truck=(0, 3, 5, 7), green_car=(5, 5, 8, 8)),
    _example("a purple donut, a clock and a broccoli on a pink background",
             purple_donut=(0, 1, 4, 5), clock=(5, 0, 8, 3), broccoli=(4, 4, 8, 8)),
)  # fmt: skip
