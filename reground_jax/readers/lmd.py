"""Layouts from LLM-grounded diffusion (github.com/TonyLianLong/LLM-groundedDiffusion, `cache/`).

A JSON object that maps each prompt to the language model's answers for it, each a string:

    [('a cat', [100, 150, 200, 250]), ...]
    Background prompt: A realistic photo of a room
    Negative prompt: dogs

Boxes are x, y, width, height in pixels of a 512x512 image. The first line may start with
"Objects: ". A layout takes its prompt from the user and its negative prompt from the answer; the
background prompt is ignored, as GLIGEN has no use for it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reground_jax.basics.wording import shown
from reground_jax.layout import Layout
from reground_jax.readers import Rejected, attempt, read_json
from reground_jax.readers.pixels import fractions

SIDE = 512  # pixels of the image that the boxes are for
BACKGROUND, NEGATIVE = "Background prompt:", "Negative prompt:"


def read_lmd(path: str | Path) -> Iterator[Layout | Rejected]:
    """The layouts of a file in order; id "3-0" is the fourth prompt's first answer.

    Raises ValueError if the file is not in this format; an invalid answer becomes a Rejected.
    """
    yield from lmd_layouts(read_json(path, "LMD"), path)


def is_lmd(content: Any) -> bool:
    return isinstance(content, dict) and any(
        isinstance(answer, str) and BACKGROUND in answer
        for answers in content.values()
        for answer in _answers(answers)
    )


def lmd_layouts(content: Any, path: str | Path) -> Iterator[Layout | Rejected]:
    """`read_lmd` for the parsed content of a file."""
    if not isinstance(content, dict):
        raise ValueError(
            f"LMD file {path} holds a JSON {type(content).__name__}: expected an object from "
            "prompts to lists of answers"
        )
    for number, (prompt, answers) in enumerate(content.items()):
        for turn, answer in enumerate(_answers(answers)):
            source = f"{path}, prompt {shown(prompt)}, answer {turn}"
            yield attempt(source, _layout, f"{number}-{turn}", prompt, answer)


def _answers(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _layout(name: str, prompt: str, answer: object) -> Layout:
    if not isinstance(answer, str) or BACKGROUND not in answer:
        raise ValueError(f"{shown(answer)} has no {BACKGROUND!r} after a list of boxes")
    things, _, texts = answer.partition(BACKGROUND)
    negative = texts.partition(NEGATIVE)[2].strip()
    pairs = _pairs(things.strip().removeprefix("Objects:").strip())
    return Layout(
        prompt=prompt,
        phrases=[phrase for phrase, _ in pairs],
        boxes=[fractions(box, (SIDE, SIDE), name="box") for _, box in pairs],
        negative_prompt="" if negative == "None" else negative,  # models write the word
        id=name,
    )


def _pairs(text: str) -> list[tuple[Any, Any]]:
    try:
        return [(phrase, box) for phrase, box in ast.literal_eval(text)]
    # Python's parser raises MemoryError at brackets that are nested too deeply.
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        form = "('phrase', [x, y, width, height])"
        raise ValueError(f"{shown(text)} is not a list of {form}") from None
    return pairs
