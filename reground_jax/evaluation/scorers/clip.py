"""CLIP score and PickScore: how well CLIP finds that an image fits its caption."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float32, Int, UInt8
from PIL import Image

from reground_jax.conditioning import Texts, padded
from reground_jax.convert.scoring import Clip, load_clip
from reground_jax.devices import Device
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorer import Form, Metric, Scorer
from reground_jax.evaluation.scorers.batches import BATCH_SIZE, about, facts, in_batches, version
from reground_jax.evaluation.statistics import Record, mean
from reground_jax.networks.clip_model import CLIPModel
from reground_jax.pictures.pixels import clip_pixels

RULES = 1  # incremented whenever records change
CLIP = "openai/clip-vit-base-patch16"
PICK, PICK_TOKENIZER = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
THREADS = 8  # that prepare images
DIGITS = 5
SCORE = Form(scale=1, digits=2)


def clip_scorer(
    source: str | Path = CLIP,
    *,
    name: str = "clip",
    tokenizer: str | Path | None = None,
    devices: Sequence[Device] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Scorer:
    """CLIP score: 100 max(cos, 0) of the image and its caption (arXiv 2104.08718, without 2.5).

    source, tokenizer: see `load_clip`. name: of the scorer and of its metric. devices: by default,
    all of this process. batch_size: images per device. Raises ValueError for a source that cannot
    be used.

    Records have the "score", and whether the caption was "truncated": longer than the text
    transformer reads. Images are prepared with Pillow as by OpenAI's and OpenCLIP's models, and
    everything is computed in float32.
    """

    def score(
        clip: CLIPModel, pixels: Float32[Array, "B S S 3"], ids: Int[Array, "B L"]
    ) -> Float32[Array, "B"]:
        return 100 * clip.similarity(pixels, ids).clip(0)

    clip = load_clip(source, tokenizer)
    what = "CLIP score, 100 max(cos, 0) of image and caption"
    return _scorer(clip, score, name, what, source, devices, batch_size)


def pick_scorer(
    source: str | Path = PICK,
    *,
    name: str = "pick",
    tokenizer: str | Path | None = None,
    devices: Sequence[Device] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Scorer:
    """PickScore: the cosine of image and caption times CLIP's learned scale (arXiv 2305.01569).

    Of two images of a caption, people prefer the first with probability sigmoid(s1 - s2), says the
    model. The options are those of `clip_scorer`; the tokenizer is by default that in the folder
    `source`, or else the one of the CLIP that PickScore was trained from.
    """

    def score(
        clip: CLIPModel, pixels: Float32[Array, "B S S 3"], ids: Int[Array, "B L"]
    ) -> Float32[Array, "B"]:
        return clip.logit(clip.similarity(pixels, ids))

    clip = load_clip(source, tokenizer, otherwise=PICK_TOKENIZER)
    what = "PickScore, exp(logit_scale) cos of image and caption"
    made = _scorer(clip, score, name, what, source, devices, batch_size)
    return dataclasses.replace(made, preference="score")


def _scorer(
    clip: Clip,
    run: Any,
    name: str,
    what: str,
    source: str | Path,
    devices: Sequence[Device] | None,
    batch_size: int,
) -> Scorer:
    over = in_batches(clip.network, run, inputs=2, devices=devices, batch_size=batch_size)
    config = clip.tokenizer.config
    tokenizer = Texts(clip.tokenizer.json, config).tokenizer
    prepare = partial(_prepared, side=clip.config.vision.image_size)

    def score(images: UInt8[np.ndarray, "B S S 3"], cases: Sequence[Case]) -> list[Record]:
        texts = [tokenizer.encode(c.layout.prompt, add_special_tokens=False).ids for c in cases]
        ids = [np.array(padded(text, config), np.int32) for text in texts]
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "prepare") as pool:
            scores = over(zip(pool.map(prepare, images), ids, strict=True))
        return [
            {
                "id": case.layout.id,
                "score": round(float(value), DIGITS),
                "truncated": len(text) > config.max_length - 2,
            }
            for case, text, value in zip(cases, texts, scores, strict=True)
        ]

    return Scorer(
        name=name,
        version=version(RULES, clip.network),
        score=score,
        metrics=(
            Metric(name, what, mean("score"), main=True, form=SCORE),
            Metric(
                f"{name}_truncated",
                f"share of captions longer than the {config.max_length} tokens that are read",
                mean("truncated"),
            ),
        ),
        facts=facts(source, clip.network),
        about=about(name, f"{what}; images are prepared with Pillow", source, clip.network),
    )


def _prepared(image: UInt8[np.ndarray, "S S 3"], side: int) -> Float32[np.ndarray, "side side 3"]:
    return clip_pixels(Image.fromarray(image), side)
