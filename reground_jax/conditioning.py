"""From layouts to the inputs of the networks: token ids, and a typed tuple of arrays."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from tokenizers import Tokenizer

from reground_jax.attention_guidance import Missing
from reground_jax.basics.short_repr import short_repr
from reground_jax.config import TokenizerConfig
from reground_jax.layout import Layout, check_max_boxes
from reground_jax.networks.clip import TextEncoding
from reground_jax.networks.grounding.text import Grounding
from reground_jax.words import Words, words_of


class Conditioning(NamedTuple):
    """A batch of layouts as arrays; float32."""

    text: Float[Array | np.ndarray, "B S E"]
    null_text: Float[Array | np.ndarray, "B S E"]  # of the negative prompts
    grounding: Grounding
    words: Words | None = None  # for attention guidance; stays on the host

    __repr__ = short_repr


class Texts:
    """Turns texts into padded token ids, as Stable Diffusion's pipelines do."""

    def __init__(self, tokenizer_json: str, config: TokenizerConfig):
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.config = config
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        unknown_id = None if unknown is None else self.tokenizer.token_to_id(unknown)
        # CLIP's is its end token, but never stands for a word, since every byte has a token.
        special = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
        self._unknown_id = None if unknown_id in special else unknown_id

    def ids(self, texts: Iterable[str]) -> np.ndarray:
        """int32 [n, max_length]: begin, tokens, end, padding.

        Warns once about truncated texts, and once about words that the tokenizer does not know.
        """
        config = self.config
        room = config.max_length - 2
        rows, cut = [], []
        unknown: dict[str, None] = {}
        for text in texts:
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
            if len(encoding.ids) > room:
                cut.append((text, text[encoding.offsets[room - 1][1] :].strip()))
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                if token == self._unknown_id:
                    unknown[text[start:stop]] = None
            ids = [config.bos_token_id, *encoding.ids[:room], config.eos_token_id]
            rows.append(ids + [config.pad_token_id] * (config.max_length - len(ids)))
        if cut:
            shown = "; ".join(f"{lost!r} of {text[:40]!r}..." for text, lost in cut[:3])
            warnings.warn(
                f"{len(cut)} text(s) truncated to {room} tokens; dropped: {shown}. "
                "Shorten them so that nothing is dropped.",
                stacklevel=3,
            )
        if unknown:
            warnings.warn(
                f"not in this model's vocabulary: {', '.join(map(repr, unknown))}; use other words",
                stacklevel=3,
            )
        return np.array(rows, np.int32).reshape(-1, config.max_length)

    def words(self, layouts: Sequence[Layout], *, max_boxes: int, missing: Missing) -> Words:
        """Which tokens of the prompts the boxes are about (`words_of`, which may raise)."""
        options: dict[str, Any] = {"max_boxes": max_boxes, "missing": missing}
        return words_of(layouts, self.tokenizer, self.config, **options)


def encode(
    layouts: Sequence[Layout],
    texts: Texts,
    run: Callable[[np.ndarray], TextEncoding],
    *,
    max_boxes: int,
    missing: Missing | None = None,
) -> Conditioning:
    """Conditioning of `layouts`; each distinct text is encoded once.

    run: token ids [n, S] -> their float32 TextEncoding, on the host. missing: what attention
    guidance does with phrases that are not in the prompt; None without guidance. Raises ValueError
    for a layout with more than `max_boxes` boxes, for an empty list, and for missing phrases.
    """
    if not layouts:
        raise ValueError("there are no layouts to encode: give at least one")
    for layout in layouts:
        check_max_boxes(layout, max_boxes)
    words = missing and texts.words(layouts, max_boxes=max_boxes, missing=missing)
    distinct = distinct_texts(layouts)
    hidden, pooled = run(texts.ids(distinct))
    conditioning = assemble(
        layouts,
        dict(zip(distinct, np.asarray(hidden), strict=True)),
        dict(zip(distinct, np.asarray(pooled), strict=True)),
        max_boxes=max_boxes,
    )
    return conditioning._replace(words=words)


def distinct_texts(layouts: Sequence[Layout]) -> list[str]:
    """Every prompt, negative prompt and phrase, each once, in order of appearance."""
    texts: dict[str, None] = {}
    for layout in layouts:
        phrases = (phrase for phrase in layout.phrases if phrase is not None)
        texts.update(dict.fromkeys((layout.prompt, layout.negative_prompt, *phrases)))
    return list(texts)


def assemble(
    layouts: Sequence[Layout],
    hidden: dict[str, np.ndarray],
    pooled: dict[str, np.ndarray],
    *,
    max_boxes: int,
) -> Conditioning:
    """Conditioning of `layouts` from the encodings of their distinct texts.

    hidden: [S, E] float32 by text. pooled: as in `pack_boxes`.
    """
    return Conditioning(
        text=np.stack([hidden[layout.prompt] for layout in layouts]),
        null_text=np.stack([hidden[layout.negative_prompt] for layout in layouts]),
        grounding=pack_boxes(layouts, pooled, max_boxes=max_boxes),
    )


def pack_boxes(
    layouts: Sequence[Layout], pooled: Mapping[str, np.ndarray], *, max_boxes: int
) -> Grounding:
    """The layouts' boxes and phrases in `max_boxes` slots each; unused slots have mask 0.

    pooled: [E] float32 by text, at least one. No layout may have more than `max_boxes` boxes.
    """
    width = next(iter(pooled.values())).shape[-1]
    boxes = np.zeros((len(layouts), max_boxes, 4), np.float32)
    phrases = np.zeros((len(layouts), max_boxes, width), np.float32)
    mask = np.zeros((len(layouts), max_boxes), np.float32)
    for row, layout in enumerate(layouts):
        for slot, (phrase, box) in enumerate(zip(layout.phrases, layout.boxes, strict=True)):
            boxes[row, slot], phrases[row, slot], mask[row, slot] = box, pooled[phrase], 1
    return Grounding(boxes, phrases, mask)  # type: ignore[arg-type]
