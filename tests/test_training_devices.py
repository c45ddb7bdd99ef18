"""A step gives the same losses, metrics and gradients on one device and on eight."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.processes import with_devices

# Eight examples with 0, 1, 2, 3, 0, ... boxes, one per device, so that the counts of covered cells,
# boxes and early timesteps differ between devices.
PROGRAM = """
    import dataclasses, json
    import jax, numpy as np
    from tests.training import TINY, TOKENIZER, Squares
    from reground_jax.conditioning import Texts
    from reground_jax.devices import SPLIT, WHOLE, over_devices
    from reground_jax.layout import Layout
    from reground_jax.model import random_params
    from reground_jax.networks.attention import attention_for
    from reground_jax.training.batches import Boxes, ImageBatches, LatentBatches
    from reground_jax.training.data import Example
    from reground_jax.training.losses import (
        AutoencoderLoss, AutoencoderTerms, DiffusionLoss, DiffusionTerms
    )
    from reground_jax.training.state import split_leaves
    from reground_jax.training.trainer import averaged_gradients

    class Boxed(Squares):
        def _example(self, seed):
            image = super()._example(seed).image
            boxes = [(0.1 * i, 0.2 * i, 0.1 * i + 0.4, 0.2 * i + 0.3) for i in range(seed % 4)]
            phrases = ["a cat"] * len(boxes)
            return Example(image, Layout(prompt="a cat", phrases=phrases, boxes=boxes))

    def measures(gradients, metrics):
        norm = np.sqrt(sum(np.square(g).sum() for g in gradients.values()))
        return {name: float(value) for name, value in (metrics | {"norm": norm}).items()}

    config = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, grounding="text"))
    leaves, attend = dict(random_params(config, 0)), attention_for("cpu", "plain")
    latents = lambda images: images[:, ::2, ::2, :2].astype(np.float32) / 128 - 1
    texts = Texts(TOKENIZER, config.text_encoder.tokenizer)
    ground = Boxes(texts, lambda ids: np.ones(8, np.float32), max_boxes=4)
    batches = LatentBatches(Boxed(), 8, texts, encode=latents, ground=ground)
    terms = DiffusionTerms(
        caption_drop=0.5, grounding_drop=0.2, box_attention=1.0, min_snr_gamma=5.0
    )
    cases = {
        "diffusion": (
            DiffusionLoss(config, attend, "parallel", terms=terms),
            split_leaves(leaves, lambda name: "vae" not in name), batches(5),
        ),
        "autoencoder": (
            AutoencoderLoss(config, attend, terms=AutoencoderTerms(kl_weight=0.1)),
            split_leaves(leaves, lambda name: "vae" in name), ImageBatches(Boxed(), 8)(5),
        ),
    }
    assert len(jax.devices()) == 8
    found = {}
    for name, (loss, (trained, frozen), batch) in cases.items():
        results = []
        for devices in (jax.devices()[:1], jax.devices()):
            run = over_devices(
                lambda p, f, b: averaged_gradients(loss, p, f, b),
                (WHOLE, WHOLE, SPLIT), WHOLE, devices=devices,
            )
            results.append(run(trained, frozen, batch))
        (one, single), (eight, shared) = jax.tree.map(np.asarray, results)
        largest = max(np.abs(gradient).max() for gradient in one.values())
        found[name] = {
            "one": measures(one, single),
            "eight": measures(eight, shared),
            "gradients": float(max(np.abs(one[k] - eight[k]).max() for k in one) / largest),
        }
    print(json.dumps(found))
"""


def test_losses_metrics_and_gradients_do_not_depend_on_the_number_of_devices():
    root = Path(__file__).parents[1]
    environment = {
        "XLA_FLAGS": with_devices(8),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env=environment, cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    metrics = {
        "diffusion": {"loss", "mse", "mse_early", "box_attention", "norm"},
        "autoencoder": {"loss", "l1", "edges", "kl", "psnr", "norm"},
    }
    for name, case in found.items():
        assert set(case["one"]) == metrics[name]
        # The float32 sums of 8 examples run in a different order. Averaging per-device ratios would
        # be off by 10 to 50 %, as would different noise or dropout.
        assert case["eight"] == pytest.approx(case["one"], rel=1e-5), name
        assert case["gradients"] < 1e-5
    assert found["diffusion"]["one"]["box_attention"] > 0.1
