"""Layouts by LLM-grounded diffusion (github.com/TonyLianLong/LLM-groundedDiffusion, `cache/`).

A JSON object from a prompt to the answers that a language model gave for it, each a text:

    [('a cat', [100, 150, 200, 250]), ...]
    Background prompt: A realistic photo of a room
    Negative prompt: dogs

Boxes are x, y, width, height in pixels of a 512x512 image. The first line may start with
"Objects: ". The prompt of a layout is the user's own, the negative prompt the answer's; the
background prompt has no use in GLIGEN. Boxes are clipped to the image, as models overshoot it by a
few pixels.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from reground_jax.layout import Layout
from reground_jax.readers import Rejected, read_json

SIDE = 512  # pixels of the image that the boxes are for
ANSWER = re.compile(
    r"(?:Objects:)?\s*(?P<boxes>.*?)\s*Background prompt:(?P<background>.*?)"
    r"(?:Negative prompt:(?P<negative>.*))?",
    re.DOTALL,
)


def read_lmd(path: str | Path) -> Iterator[Layout | Rejected]:
    """The layouts of a file in its order: ids "3-0" are the fourth prompt's first answer.

    Raises ValueError if the file is not of this form; an answer that is no layout is a Rejected.
    """
    content = read_json(path, "LMD")
    if not isinstance(content, dict):
        raise ValueError(
            f"LMD file {path} holds a JSON {type(content).__name__}: expected an object from "
            "prompts to lists of answers"
        )
    for number, (prompt, answers) in enumerate(content.items()):
        for turn, answer in enumerate(answers if isinstance(answers, list) else [answers]):
            try:
                yield _layout(f"{number}-{turn}", prompt, answer)
            except ValueError as error:
                yield Rejected(
                    source=f"{path}, prompt {prompt!r}, answer {turn}", reason=f"{error}"
                )


def _layout(name: str, prompt: str, answer: object) -> Layout:
    found = ANSWER.fullmatch(answer) if isinstance(answer, str) else None
    if found is None:
        raise ValueError(f"{str(answer)[:80]!r} has no 'Background prompt:' after a list of boxes")
    negative = (found["negative"] or "").strip()
    try:
        pairs = [(str(phrase), _box(box)) for phrase, box in ast.literal_eval(found["boxes"])]
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        raise ValueError(
            f"{found['boxes'][:80]!r} is no list of ('phrase', [x, y, width, height])"
        ) from None
    return Layout(
        prompt=prompt,
        phrases=[phrase for phrase, _ in pairs],
        boxes=[box for _, box in pairs],
        negative_prompt="" if negative == "None" else negative,  # models write the word
        id=name,
    )


def _box(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [min(max(edge / SIDE, 0.0), 1.0) for edge in (x, y, x + width, y + height)]
