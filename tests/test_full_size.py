"""Proof 5: a random GLIGEN of SD1.4's size, from fp16 diffusers folder to latents, by hand.

    pytest -m slow -s tests/test_full_size.py      (minutes on 2 cores, 14 GB of memory)

Each stage is a separate process and reports its time and its peak memory (resident set).
"""

import numpy as np
import pytest

from benchmarks.peer import Options, compare, prepare, show


@pytest.mark.slow
def test_a_full_size_model_gives_diffusers_latents(tmp_path):
    options = Options(preset="sd14", steps=2, repeats=1, parallel=True)
    prepared = prepare(tmp_path, options)
    assert round(prepared["convert"]["unet_parameters"] / 1e6, 2) == 1068.62
    assert prepared["convert"]["dtype"] == "float16"  # the source's
    record = compare(tmp_path, options)
    print("\n" + show(record))
    # float32 on both sides, after two steps and the decoder
    assert record["errors"]["latents"] < 1e-4 and record["errors"]["image"] < 1e-4
    sequential, parallel = (
        np.load(tmp_path / f"ours-{wiring}-latents.npy") for wiring in options.wirings
    )
    assert np.abs(sequential - parallel).max() > 1e-3
