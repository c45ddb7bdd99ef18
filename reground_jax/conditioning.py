"""From layouts to the inputs of the networks: token ids, and a typed tuple of arrays."""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32
from tokenizers import Tokenizer

from reground_jax.attention_guidance import Missing
from reground_jax.basics.short_repr import short_repr
from reground_jax.config import ModelConfig, TokenizerConfig
from reground_jax.layout import Layout, check_max_boxes
from reground_jax.networks.clip import TextEncoding
from reground_jax.networks.grounding import Grounding
from reground_jax.packing import Known, Size, pack, pack_known
from reground_jax.pictures import Picture
from reground_jax.pictures.pixels import reference_pixels
from reground_jax.words import Words, words_of

WEIGHTED = re.compile(r"\([^()]+:\s*\d*\.?\d+\s*\)")  # as other programs weigh words


class Conditioning(NamedTuple):
    """A batch of layouts as arrays; float32."""

    text: Float[Array | np.ndarray, "B S E"]
    null_text: Float[Array | np.ndarray, "B S E"]  # of the negative prompts
    grounding: Grounding
    words: Words | None = None  # for attention guidance; stays on the host
    known: Known | None = None  # for inpainting

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
        texts = list(texts)
        rows, cut = [], []
        unknown: dict[str, None] = {}
        for text in texts:
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
            if len(encoding.ids) > room:
                cut.append((text, text[encoding.offsets[room - 1][1] :].strip()))
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                if token == self._unknown_id:
                    unknown[text[start:stop]] = None
            rows.append(padded(encoding.ids, config))
        if weighted := [text for text in texts if WEIGHTED.search(text)]:
            warnings.warn(
                f"{weighted[0][:60]!r}: a weight such as (word:1.2) is read as text here, so leave "
                "it out",
                stacklevel=3,
            )
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


def padded(tokens: Sequence[int], config: TokenizerConfig) -> list[int]:
    """Begin, as many of a text's tokens as fit, end, padding: `max_length` ids."""
    ids = [config.bos_token_id, *tokens[: config.max_length - 2], config.eos_token_id]
    return ids + [config.pad_token_id] * (config.max_length - len(ids))


class ImageEncoder(NamedTuple):
    """run: images [n, side, side, 3], normalized for CLIP -> their features [n, E], on the host."""

    side: int
    run: Callable[[np.ndarray], np.ndarray]


def encode(
    layouts: Sequence[Layout],
    texts: Texts,
    run: Callable[[np.ndarray], TextEncoding],
    config: ModelConfig,
    *,
    max_boxes: int,
    size: Size,
    images: ImageEncoder | None = None,
    missing: Missing | None = None,
) -> Conditioning:
    """Conditioning of `layouts`; each distinct text and reference image is encoded once.

    run: token ids [n, S] -> their float32 TextEncoding, on the host. size: of the images, in
    pixels. missing: what attention guidance does with phrases that are not in the prompt; None
    without guidance. Raises ValueError for a layout with more than `max_boxes` boxes, for an empty
    list, for missing phrases, and for pictures that cannot be read.
    """
    if not layouts:
        raise ValueError("there are no layouts to encode: give at least one")
    for layout in layouts:
        check_max_boxes(layout, max_boxes)
    words = missing and texts.words(layouts, max_boxes=max_boxes, missing=missing)
    distinct = distinct_texts(layouts)
    hidden, pooled = run(texts.ids(distinct))
    by_text = dict(zip(distinct, np.asarray(hidden), strict=True))
    factor = config.vae.downsampling
    return Conditioning(
        text=np.stack([by_text[layout.prompt] for layout in layouts]),
        null_text=np.stack([by_text[layout.negative_prompt] for layout in layouts]),
        grounding=pack(
            layouts,
            config.unet,
            max_boxes=max_boxes,
            size=size,
            phrases=dict(zip(distinct, np.asarray(pooled), strict=True)),
            images={} if images is None else image_features(layouts, images),
        ),
        words=words,
        known=pack_known(layouts, size=size, latent_size=(size[0] // factor, size[1] // factor))
        if config.unet.inpainting
        else None,
    )


def image_features(
    layouts: Sequence[Layout], encoder: ImageEncoder
) -> dict[Picture, Float32[np.ndarray, "E"]]:
    """The feature of every reference image. Raises ValueError for one that cannot be read."""
    distinct = dict.fromkeys(
        image for layout in layouts for image in layout.images or () if image is not None
    )
    if not distinct:
        return {}
    pixels = np.stack([reference_pixels(image, encoder.side) for image in distinct])
    return dict(zip(distinct, encoder.run(pixels), strict=True))


def distinct_texts(layouts: Sequence[Layout]) -> list[str]:
    """Every prompt, negative prompt and phrase, each once, in order of appearance."""
    texts: dict[str, None] = {}
    for layout in layouts:
        phrases = (phrase for phrase in layout.phrases if phrase is not None)
        texts.update(dict.fromkeys((layout.prompt, layout.negative_prompt, *phrases)))
    return list(texts)
