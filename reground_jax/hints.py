"""What other packages call a pipeline's arguments, and what they are called here."""

import difflib
from collections.abc import Collection

from reground_jax.basics.options import options
from reground_jax.settings import Settings

_BOXES = "give Layout(prompt, phrases, boxes), one per image"
HINTS = {
    "prompt": _BOXES,
    "negative_prompt": "give it in the Layout, negative_prompt=...",
    "gligen_phrases": _BOXES,
    "gligen_boxes": _BOXES,
    "phrases": _BOXES,
    "boxes": _BOXES,
    "gligen_images": "give them in the Layout, images=...",
    "input_phrases_mask": "give it in the Layout, phrase_weights=...",
    "input_images_mask": "give it in the Layout, image_weights=...",
    "gligen_inpaint_image": "give it in the Layout, source=...",
    **{
        name: f"give it in the Layout, {name}=..."
        for name in ("images", "keypoints", "map", "source")
    },
    "alpha_type": "use gamma, which also takes GLIGEN's three parts",
    "generator": "use seeds, one integer per image",
    "seed": "use seeds, one integer per image",
    "num_images_per_prompt": "repeat the layout in the list, with a seed for each",
    "output_type": 'use output: "pil", "numpy" or "latents"',
    "return_dict": "a call returns the images themselves; use output for their form",
    "callback": "use progress",
    "callback_on_step_end": "use progress",
    "callback_steps": "use progress, which is called after every step",
    "box_format": "give it in the Layout, box_format=...",
    "dtype": "set it once, in Pipeline.load(name, dtype=...)",
    "torch_dtype": "set it once, in Pipeline.load(name, dtype=...)",
    "devices": "set them once, in Pipeline.load(name, devices=...)",
    "attention": "set it once, in Pipeline.load(name, attention=...)",
    "mapper": "set it once, in Pipeline.load(name, mapper=...)",
    "cross_attention_kwargs": "there is no counterpart; use gamma to change the grounding",
    **{
        name.removeprefix("--").replace("-", "_"): f"use {field}"
        for field, option in options(Settings).items()
        for name in (option.name, *option.aliases)
        if name != "--" + field.replace("_", "-")
    },
}


def refuse_keywords(function: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise TypeError for the first of `given` that is not `known`, saying what to use instead."""
    for name in given:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = HINTS.get(name) or (f"did you mean {near[0]}?" if near else None)
        raise TypeError(
            f"{function} has no argument {name!r}: {hint or 'it takes ' + ', '.join(known)}"
        )
