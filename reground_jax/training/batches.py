"""Turns examples into training batches: images, or latents with token ids and grounding.

Batches come from callables that run in the prefetch thread and depend only on the step number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from reground_jax.conditioning import Texts
from reground_jax.layout import check_max_boxes
from reground_jax.networks.grounding import Grounding, maps, text
from reground_jax.packing import pack_boxes
from reground_jax.training.config import check_cache
from reground_jax.training.data import Source
from reground_jax.training.losses import ImageBatch, LatentBatch

Encode = Callable[[UInt8[np.ndarray, "B S S 3"]], Float[np.ndarray, "B h w C"]]
Ground = Callable[[Sequence[Any]], Grounding]  # of examples
KEPT_PHRASES = 65536  # cached phrase embeddings: 200 MB at width 768


class ImageBatches:
    def __init__(self, source: Source, batch_size: int):
        self.source, self.batch_size = source, batch_size

    def __call__(self, step: int) -> ImageBatch:
        examples = self.source.batch(step, self.batch_size)
        return ImageBatch(np.stack([e.image for e in examples]), _positions(step, self.batch_size))


class Boxes:
    """The grounding of examples by their phrases and boxes. pooled: token ids to an embedding."""

    def __init__(
        self, texts: Texts, pooled: Callable[[np.ndarray], np.ndarray], *, max_boxes: int = 30
    ):
        self.texts, self.pooled, self.max_boxes = texts, pooled, max_boxes
        self._phrases: dict[str, np.ndarray] = {}

    def __call__(self, examples: Sequence[Any]) -> text.Grounding:
        layouts = [example.layout for example in examples]
        for layout in layouts:
            check_max_boxes(layout, self.max_boxes)
        phrases = dict.fromkeys(phrase for layout in layouts for phrase in layout.phrases)
        pooled = {text: self._phrase(text) for text in ["", *filter(None, phrases)]}
        return pack_boxes(layouts, pooled, max_boxes=self.max_boxes)

    def _phrase(self, text: str) -> np.ndarray:
        if text not in self._phrases:
            if len(self._phrases) >= KEPT_PHRASES:
                self._phrases.clear()
            self._phrases[text] = self.pooled(self.texts.ids([text]))
        return self._phrases[text]


def labels(examples: Sequence[Any]) -> maps.Grounding:
    """The grounding of examples by the classes of their pixels."""
    return maps.Grounding(
        np.stack([example.labels for example in examples]), np.ones(len(examples), np.float32)
    )


class LatentBatches:
    """Latents from the frozen VAE, token ids of captions, and grounding if `ground` is given.

    cache_examples: cycle through that many examples and cache their batches; 0 disables the cache.
    Rounded down to whole batches, so that a batch rebuilt after a resume is identical, bit for
    bit. Raises ValueError for less than one batch.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        texts: Texts,
        *,
        encode: Encode,
        ground: Ground | None,
        cache_examples: int = 0,
    ):
        self.source, self.batch_size, self.texts = source, batch_size, texts
        self.encode, self.ground = encode, ground
        check_cache(cache_examples, batch_size)
        self.null_ids = texts.ids([""])
        self.period = cache_examples // batch_size
        self._kept: dict[int, LatentBatch] = {}

    def __call__(self, step: int) -> LatentBatch:
        if not self.period:
            return self._make(step)._replace(position=_positions(step, self.batch_size))
        index = step % self.period
        if index not in self._kept:
            self._kept[index] = self._make(index)
        return self._kept[index]._replace(position=_positions(step, self.batch_size))

    def _make(self, index: int) -> LatentBatch:
        examples = self.source.batch(index, self.batch_size)
        ids = self.texts.ids([example.layout.prompt for example in examples])
        return LatentBatch(
            latents=np.asarray(self.encode(np.stack([e.image for e in examples]))),
            ids=ids,
            null_ids=np.broadcast_to(self.null_ids, ids.shape),
            grounding=None if self.ground is None else self.ground(examples),
            position=_positions(index, self.batch_size),
        )


def _positions(step: int, batch_size: int) -> np.ndarray:
    return np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64).astype(np.int32)
