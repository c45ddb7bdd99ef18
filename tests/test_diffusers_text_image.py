"""Reference images in boxes: diffusers' `gated-text-image` folders, and its pipeline."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionGLIGENTextImagePipeline
from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPProcessor

from reground_jax import Layout, Pipeline, Settings
from reground_jax.convert.conversion import convert
from reground_jax.convert.file_names import hub_files
from reground_jax.convert.verification import TOLERANCE, verify
from reground_jax.model import read_model
from reground_jax.packing import known_cells
from tests import reference
from tests.reference import nhwc, relative_error

# diffusers' schedulers multiply numpy scalars by tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

WIDTH, SIDE, STEPS, SCALE, NORM = 32, 28, 8, 5.0, 28.7
VAE = dict(
    block_out_channels=(16, 32),
    sample_size=16,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
)
# As `reference.write_diffusers` has them, but of the width of the image features.
NETWORKS = {
    "unet": lambda channels: reference.unet(
        "small", cross_attention_dim=WIDTH, attention_type="gated-text-image", in_channels=channels
    ),
    "vae": lambda _: reference.vae("small", **VAE),
    "text_encoder": lambda _: reference.text_encoder("small", hidden_size=WIDTH),
    "image_encoder": lambda _: reference.image_encoder("l14", projection_dim=WIDTH),
    "image_project": lambda _: reference.randomise(CLIPImageProjection(WIDTH), seed=5),
}


def picture(height: int, width: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


CLOCK, BEACH = picture(60, 90, 0), picture(70, 40, 1)
BOXES = [(0.1, 0.2, 0.6, 0.7), (0.5, 0.5, 0.9, 1.0), (0.2, 0.1, 0.7, 0.4), (0.0, 1.0, 0.0, 1.0)]
PHRASES = ["a cat", "a dog", None, None]
IMAGES = [CLOCK, None, BEACH, BEACH]
PHRASE_WEIGHTS, IMAGE_WEIGHTS = [1, 0.5, 1, 1], [0.25, 1, 1, 1]
LAYOUT = Layout(
    "a cat and a dog", PHRASES, BOXES, "bad", images=IMAGES, phrase_weights=PHRASE_WEIGHTS,
    image_weights=IMAGE_WEIGHTS,
)  # fmt: skip


@functools.cache
def written(channels: int):
    """(diffusers' pipeline, its folder, our model directory)."""
    place = Path(tempfile.mkdtemp(prefix="reground-text-image-"))
    tokenizer = reference.write_tokenizer(place / "tokenizer")
    size = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size=size[0], crop_size=size[1])
    theirs = StableDiffusionGLIGENTextImagePipeline(
        **{name: make(channels) for name, make in NETWORKS.items()},
        tokenizer=tokenizer,
        processor=CLIPProcessor(processor, tokenizer),
        scheduler=PNDMScheduler.from_config(reference.SD14_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(place / "theirs")
    convert(place / "theirs", place / "ours")
    return theirs, place / "theirs", place / "ours"


def noise() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, 8, 8, 4)).astype(np.float32)


def nchw(latents: np.ndarray) -> torch.Tensor:
    return torch.tensor(latents.transpose(0, 3, 1, 2))


def ours(directory: Path, gamma: float) -> np.ndarray:
    return Pipeline.load(directory)(
        LAYOUT, wiring="sequential", solver="plms", gamma=gamma, num_steps=STEPS,
        guidance_scale=SCALE, latents=noise(), output="latents",
    )  # fmt: skip


def grounding(pipe) -> dict[str, torch.Tensor]:
    """What diffusers' pipeline makes of the layout: null tokens, then its own."""
    with torch.no_grad():
        given = pipe.get_cross_attention_kwargs_with_grounded(
            WIDTH, PHRASES, IMAGES, BOXES, PHRASE_WEIGHTS, IMAGE_WEIGHTS, 1, NORM, 30, "cpu"
        )
    null = pipe.get_cross_attention_kwargs_without_grounded(WIDTH, 1, 30, "cpu")
    return {name: torch.cat([null[name], given[name]]) for name in given}


@torch.no_grad()
def right_loop(pipe, gamma: float) -> np.ndarray:
    """What diffusers' pipeline means to do, of its own parts; it ignores its beta.

    PNDM evaluates the first step twice, so it has one more time step than steps.
    """
    text = torch.cat(
        pipe.encode_prompt(LAYOUT.prompt, "cpu", 1, True, LAYOUT.negative_prompt)[::-1]
    )
    gligen, x = grounding(pipe), nchw(noise())
    pipe.scheduler.set_timesteps(STEPS)
    for evaluation, t in enumerate(pipe.scheduler.timesteps):
        pipe.enable_fuser(max(evaluation - 1, 0) < int(gamma * STEPS))
        kwargs = {"gligen": dict(gligen)}
        out = pipe.unet(torch.cat([x, x]), t, text, cross_attention_kwargs=kwargs).sample
        null, given = out.chunk(2)
        x = pipe.scheduler.step(null + SCALE * (given - null), t, x).prev_sample
    pipe.enable_fuser(True)
    return nhwc(x)


@pytest.mark.parametrize("channels", [4, 9])
def test_every_array_of_a_folder_has_one_place(channels):
    theirs, folder, directory = written(channels)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionGLIGENTextImagePipeline"
    model = read_model(directory)
    assert model.config.unet.grounding == "text_image"
    assert model.config.unet.inpainting == (channels == 9)
    assert set(model.params) == set(NETWORKS)
    for name, arrays in model.params.items():
        values = [tensor.numel() for tensor in getattr(theirs, name).parameters()]
        assert sum(leaf.size for leaf in jax.tree.leaves(arrays)) == sum(values), name


def test_the_files_that_the_hub_is_asked_for_are_enough(tmp_path):
    _, folder, directory = written(4)
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    for name in hub_files(files):
        (tmp_path / "part" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, tmp_path / "part" / name)
    info = convert(tmp_path / "part", tmp_path / "ours")
    assert info["checksum"] == read_model(directory).info["checksum"]


@pytest.mark.parametrize("channels", [pytest.param(4, marks=pytest.mark.slow), 9])
def test_a_folder_verifies(channels):
    _, folder, directory = written(channels)
    errors = verify(folder, directory)
    assert set(errors) == set(NETWORKS)
    assert max(errors.values()) < TOLERANCE / 5


def test_the_features_of_images_equal_diffusers():
    theirs, _, directory = written(4)
    given = Pipeline.load(directory).encode(LAYOUT).grounding
    expected = {name: tensor[1].numpy() for name, tensor in grounding(theirs).items()}
    names = {
        "boxes": "boxes", "mask": "masks", "phrases": "phrases_embeddings",
        "phrase_weights": "phrases_masks", "images": "image_embeddings",
        "image_weights": "image_masks",
    }  # fmt: skip
    for field, name in names.items():
        assert relative_error(getattr(given, field)[0], expected[name]) < 1e-5, field
    kernel = read_model(directory).params["image_project"]["kernel"]
    np.testing.assert_array_equal(kernel, theirs.image_project.project.weight.detach().numpy().T)


def test_the_pipeline_equals_diffusers():
    theirs, _, directory = written(4)
    result = theirs(
        prompt=LAYOUT.prompt, negative_prompt=LAYOUT.negative_prompt, gligen_phrases=PHRASES,
        gligen_images=IMAGES, gligen_boxes=BOXES, input_phrases_mask=PHRASE_WEIGHTS,
        input_images_mask=IMAGE_WEIGHTS, gligen_scheduled_sampling_beta=1.0,
        num_inference_steps=STEPS, guidance_scale=SCALE, latents=nchw(noise()), height=16,
        width=16, output_type="latent",
    )  # fmt: skip
    expected = nhwc(result.images)
    np.testing.assert_array_equal(right_loop(theirs, 1), expected)  # the loop is diffusers'
    assert relative_error(ours(directory, 1), expected) < 2e-5


def test_a_smaller_gamma_equals_the_loop_that_diffusers_means():
    theirs, _, directory = written(4)
    half = right_loop(theirs, 0.5)
    assert relative_error(ours(directory, 0.5), half) < 2e-5
    other = right_loop(theirs, 0.625)
    assert relative_error(other, half) > 1e-3  # one more grounded step would be noticed


def test_an_inpainting_folder_fills_the_boxes():
    _, _, directory = written(9)
    layout = Layout("a cat", ["a cat"], [BOXES[0]], images=[CLOCK], source=BEACH)
    settings = Settings(num_steps=2, gamma=1)
    pipe = Pipeline.load(directory)
    first, second = pipe([layout, layout], settings, seeds=[1, 2], output="latents")
    outside = known_cells(layout.boxes, 8, 8) > 0
    np.testing.assert_array_equal(first[outside], second[outside])  # the source's
    assert (first[~outside] != second[~outside]).any()
