"""From a checked request to images: each batch in turn is padded, run and converted."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from reground_jax.basics.progress import reporting
from reground_jax.conditioning import Texts
from reground_jax.images import to_uint8
from reground_jax.model import Params, nonfinite_arrays
from reground_jax.programs import Programs
from reground_jax.request import Request
from reground_jax.sampling.sweep import Schedule, num_steps
from reground_jax.session import Session
from reground_jax.settings import Settings


def generate(
    programs: Programs, params: Params, texts: Texts, request: Request, variants: Sequence[Settings]
) -> list[Any]:
    """The images of a request under each of `variants` (`Session.sweep`), in the requested form.

    The last batch is padded with its last layout, and the extra images are dropped.
    """
    settings, layouts = request.settings, request.layouts
    size = programs.latent_shape(settings)
    if request.output != "latents":
        factor = programs.config.vae.downsampling
        size = (size[0] * factor, size[1] * factor, 3)
    results = [[np.zeros((0, *size), np.float32)] for _ in variants]
    latents = None if request.latents is None else jnp.asarray(request.latents)
    batch = request.batch_size * len(programs.hardware.devices)
    starts = range(0, len(layouts), batch)
    steps = num_steps([Schedule.of(variant, programs.config.unet) for variant in variants])
    with reporting(request.progress, len(starts), steps) as report:
        for index, start in enumerate(starts):
            rows = [min(row, len(layouts) - 1) for row in range(start, start + batch)]
            chosen = [layouts[row] for row in rows]
            session = Session(
                programs, params,
                programs.encode(params, texts, chosen, settings=settings),
                settings, request.seeds[rows],
                latents=None if latents is None else latents[np.array(rows)],
            )  # fmt: skip
            finals = session.sweep(variants, progress=report(index))
            for result, final in zip(results, finals, strict=True):
                made = final if request.output == "latents" else session.decode(final)
                result.append(np.asarray(made)[: len(layouts) - start])
                check_finite(result[-1], start, params, request)
    arrays = [np.concatenate(result) for result in results]
    if request.output != "pil":
        return arrays
    return [
        [Image.fromarray(image) for image in to_uint8(array, value_range="0..1")]
        for array in arrays
    ]


def check_finite(
    made: Float[np.ndarray, "B H W C"], first: int, params: Params, request: Request
) -> None:
    """Raise ValueError if an image holds NaN or infinity, or only warn if the output is arrays.

    first: index of the first image in the request.
    """
    finite = np.isfinite(made).all(axis=(1, 2, 3))
    if finite.all():
        return
    dtype, scale = request.settings.dtype, request.settings.guidance_scale
    if broken := nonfinite_arrays(params):
        why = f"so does the model's array {broken[0]}; convert an intact checkpoint"
    elif dtype != "float32":
        why = f"the arithmetic overflowed in {dtype}; try dtype='float32'"
    else:
        why = f"the arithmetic overflowed; lower guidance_scale ({scale:g})"
    message = f"image {first + int(np.argmin(finite)) + 1} holds NaN or infinity: {why}"
    if request.output == "pil":
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)
