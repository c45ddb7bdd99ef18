"""Which tokens of a prompt a phrase is about, for guidance by attention maps.

A phrase is found as whole words, whatever their case and the white space between them, without an
article in front; else with its last word in the singular or plural; else by its last word alone.
The k-th of equal phrases takes the k-th place where it is found, or the last.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32

from reground_jax.attention_guidance import Missing
from reground_jax.basics.short_repr import short_repr
from reground_jax.config import TokenizerConfig
from reground_jax.layout import Layout

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ARTICLE = re.compile(r"(?:a|an|the)\s+(?=\S)", re.IGNORECASE)


class Words(NamedTuple):
    """The boxes of a batch of layouts and their words, on the host."""

    boxes: Float64[np.ndarray, "B G 4"]
    tokens: Bool[np.ndarray, "B G S"]  # of the encoded prompt; none for a box without words
    end: Int32[np.ndarray, "B"]  # tokens from 1 to before this one share the attention of a cell

    __repr__ = short_repr


def words_of(
    layouts: Sequence[Layout],
    tokenizer: "Tokenizer",
    config: TokenizerConfig,
    *,
    max_boxes: int,
    missing: Missing,
) -> Words:
    """Raises ValueError for a phrase that is not in the prompt, unless `missing` is "skip"."""
    count, length = len(layouts), config.max_length
    boxes = np.zeros((count, max_boxes, 4))
    tokens = np.zeros((count, max_boxes, length), bool)
    end = np.zeros(count, np.int32)
    for row, layout in enumerate(layouts):
        encoding = tokenizer.encode(layout.prompt, add_special_tokens=False)
        offsets = encoding.offsets[: length - 2]
        # CLIP-L's maps were read over all positions but the last. OpenCLIP pads with a token of its
        # own, which is no word.
        padded_with_end = config.pad_token_id == config.eos_token_id
        end[row] = length - 1 if padded_with_end else 1 + len(offsets)
        given = layout.tokens and _given(layout, length)
        for slot, found in enumerate(given or _tokens(layout, offsets, missing)):
            boxes[row, slot] = layout.boxes[slot]
            tokens[row, slot, list(found)] = True
    return Words(boxes, tokens, end)


def check_words(layout: Layout) -> None:
    """Raise ValueError for a phrase that is not in the prompt, whatever the tokenizer."""
    if layout.tokens is None:
        for index, span in enumerate(_spans(layout)):
            if span is None:
                _refuse(layout, index)


def _tokens(
    layout: Layout, offsets: Sequence[tuple[int, int]], missing: Missing
) -> Iterator[tuple[int, ...]]:
    """Positions in the encoded prompt, where 0 is its begin token, of each box's words."""
    for index, span in enumerate(_spans(layout)):
        start, stop = span or (0, 0)
        overlap = (first < stop and last > start for first, last in offsets)
        found = tuple(position for position, inside in enumerate(overlap, 1) if inside)
        if missing == "error" and not found:
            _refuse(layout, index, ", within the tokens that the model reads" if span else "")
        yield found


def _spans(layout: Layout) -> Iterator[tuple[int, int] | None]:
    """Where the phrase of each box is found."""
    seen: Counter[str] = Counter()
    for phrase in layout.phrases:
        if phrase is None:  # of a box with an image only
            yield None
            continue
        name = " ".join(ARTICLE.sub("", phrase.strip(), count=1).casefold().split())
        yield phrase_span(layout.prompt, phrase, seen[name])
        seen[name] += 1


def _refuse(layout: Layout, index: int, where: str = "") -> None:
    """Raises ValueError for a phrase without words, unless its box has no area."""
    x0, y0, x1, y1 = layout.boxes[index]
    if layout.phrases[index] is not None and x0 < x1 and y0 < y1:
        raise ValueError(
            f"phrase {index + 1} of {layout.name}, {layout.phrases[index]!r}, is not in the prompt "
            f"{layout.prompt!r}{where}: attention guidance needs its words there. Name it in the "
            "prompt, or skip such boxes with missing='skip'"
        )


def _given(layout: Layout, length: int) -> Sequence[Sequence[int]]:
    """The layout's own tokens."""
    for number, own in enumerate(layout.tokens or (), 1):
        for token in own:
            if token >= length:
                raise ValueError(
                    f"token {token} of box {number} of {layout.name} is past the {length} tokens "
                    "that the model reads: give smaller positions"
                )
    return layout.tokens or ()


def phrase_span(prompt: str, phrase: str, occurrence: int = 0) -> tuple[int, int] | None:
    """(start, stop) in characters of the prompt, or None."""
    for words in _forms(ARTICLE.sub("", phrase.strip(), count=1).split()):
        pattern = r"\s+".join(map(re.escape, words))
        found = list(re.finditer(rf"(?<!\w){pattern}(?!\w)", prompt, re.IGNORECASE))
        if found:
            return found[min(occurrence, len(found) - 1)].span()
    return None


def _forms(words: list[str]) -> Iterator[list[str]]:
    """The words, and forms that may stand for them, in order of preference."""
    *others, last = words
    for kept in (others, []) if others else ([],):
        yield [*kept, last]
        for form in _numbers(last):
            yield [*kept, form]


def _numbers(word: str) -> Iterator[str]:
    """Singulars and plurals that English may have."""
    lower = word.lower()
    if lower.endswith("ies"):
        yield word[:-3] + "y"
    if lower.endswith("es"):
        yield word[:-2]
    if lower.endswith("s"):
        yield word[:-1]
    if lower.endswith("y"):
        yield word[:-1] + "ies"
    yield word + "s"
    yield word + "es"
