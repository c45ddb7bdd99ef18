"""The way back to PyTorch: what is exported is what was converted, bit for bit, and runs there."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch

from reground_jax.cli import main
from reground_jax.convert.conversion import convert
from reground_jax.convert.export import FORMS, export, noise_tables
from reground_jax.convert.sources import open_original
from reground_jax.convert.verification import TOLERANCE
from reground_jax.layout import Layout
from reground_jax.model import read_model, write_model
from reground_jax.pipeline import Pipeline
from reground_jax.sampling.schedule import alphas_cumprod
from reground_jax.storage.checkpoint import flatten
from tests import kinds, originals, reference
from tests.marks import some


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


def states(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of a diffusers folder, by part, without the prefixes that versions differ in."""
    found = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        found[file.parent.name] = {
            name.removeprefix("text_model.").removeprefix("vision_model."): tensor
            for name, tensor in safetensors.torch.load_file(file).items()
            if not name.endswith("position_ids")
        }
    return found


def check_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.shape == expected[name].shape, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", ["sd1", "sd2", "inpaint", "odd"])
def test_a_diffusers_folder_comes_back(folder, name):
    theirs, ours, back = (folder / f"{name}-{what}" for what in ("theirs", "ours", "back"))
    reference.write_diffusers(theirs, name)
    info = convert(theirs, ours)
    export(ours, back, "diffusers")
    expected, found = states(theirs), states(back)
    assert found.keys() == expected.keys() == {"unet", "vae", "text_encoder"}
    for part in found:
        if name == "odd":  # has heads as SD2.x, but convolutions as SD1.x
            expected[part] = {n: t.reshape(found[part][n].shape) for n, t in expected[part].items()}
        check_equal(found[part], expected[part])
    again = convert(back, folder / f"{name}-again")
    for field in ("checksum", "config", "tokenizer"):
        assert again.get(field) == info.get(field), field
    assert read_model(folder / f"{name}-again").config == read_model(ours).config


def test_a_text_image_folder_comes_back(folder):
    from tests.test_diffusers_text_image import written

    _, theirs, ours = written(4)
    export(ours, folder / "images", "diffusers")
    expected, found = states(theirs), states(folder / "images")
    for part in expected:
        check_equal(found[part], expected[part])
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder / "images")
    assert isinstance(pipe, diffusers.StableDiffusionGLIGENTextImagePipeline)
    image = np.zeros((40, 30, 3), np.uint8)
    size = pipe.processor.image_processor(images=[image], return_tensors="np").pixel_values.shape
    vision = read_model(ours).config.image_encoder
    assert vision is not None and size[2:] == (vision.image_size,) * 2


@pytest.mark.parametrize(
    "kind", some(kinds.ALL, ("text_box", "text_image_inpaint", "keypoint", "sem"))
)
def test_an_original_checkpoint_comes_back(folder, kind):
    """Names, dtypes and numbers as `torch.load` reads them; and converted again, the same model."""
    ours, back = kinds.converted(kind), folder / f"gligen-{kind}"
    export(ours, back, "gligen")
    file = back / "diffusion_pytorch_model.bin"
    found = torch.load(file)
    parts, original = open_original(kinds.source(kind))
    theirs = {part: originals.tensors(parts[part]) for part in parts}
    for part in ("model", "autoencoder", "text_encoder"):
        check_equal(found[part], theirs[part])
    for name, table in theirs["diffusion"].items():
        torch.testing.assert_close(found["diffusion"][name], table, rtol=2e-5, atol=1e-7)
    _, written = open_original(file)
    assert written.keys() == original.keys()
    for part in written:
        assert written[part]["target"] == original[part]["target"]
    extra = {}
    if (conv := back / "SD_input_conv_weight_bias.pth").exists():
        extra["first_conv"] = conv
    if (matrix := back / "projection_matrix").exists():
        extra["projection"] = matrix
    given = kinds.companions(kinds.source(kind), folder / f"gligen-{kind}-companions") | extra
    convert(file, folder / f"gligen-{kind}-again", **given)
    again, model = read_model(folder / f"gligen-{kind}-again"), read_model(ours)
    assert again.config == model.config and again.info["checksum"] == model.info["checksum"]


def test_an_adapter_over_its_base_is_the_model(folder):
    tokenizer = originals.write_tiny_tokenizer(folder / "adapter-tokenizer")
    ours = folder / "adapter-ours"
    info = convert(originals.TEXT_BOX, ours, tokenizer=tokenizer)
    export(ours, folder / "fusers.safetensors", "adapter")
    base = originals.write_single_file(folder / "base.safetensors")
    again = convert(
        base, folder / "adapter-again", adapter=folder / "fusers.safetensors", tokenizer=tokenizer
    )
    assert again["checksum"] == info["checksum"]


STEPS, SCALE = 4, 4.0
LAYOUT = Layout(
    "a cat and a dog on the grass", ["a cat", "a dog"],
    [(0.0625, 0.375, 0.4375, 0.75), (0.5625, 0.375, 0.9375, 0.75)],
)  # fmt: skip


@torch.no_grad()
def drawn(pipe: diffusers.StableDiffusionGLIGENPipeline, noise: np.ndarray) -> np.ndarray:
    """Its loop, of its own parts: the pipeline itself cuts latents to four channels."""
    x = torch.from_numpy(noise.transpose(0, 3, 1, 2))
    text = torch.cat(pipe.encode_prompt(LAYOUT.prompt, "cpu", 1, True, "")[::-1])
    tokens = pipe.tokenizer(list(LAYOUT.phrases), padding=True, return_tensors="pt")
    phrases = pipe.text_encoder(tokens.input_ids).pooler_output
    boxes = torch.zeros(2, 30, 4)
    embeddings, masks = torch.zeros(2, 30, phrases.shape[1]), torch.zeros(2, 30)
    boxes[1, :2], embeddings[1, :2], masks[1, :2] = torch.tensor(LAYOUT.boxes), phrases, 1
    gligen = {"boxes": boxes, "positive_embeddings": embeddings, "masks": masks}
    pipe.scheduler.set_timesteps(STEPS)
    for t in pipe.scheduler.timesteps:
        kwargs = {"gligen": dict(gligen)}
        out = pipe.unet(torch.cat([x, x]), t, text, cross_attention_kwargs=kwargs).sample
        null, given = out.chunk(2)
        x = pipe.scheduler.step(null + SCALE * (given - null), t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


def test_diffusers_draws_what_we_draw_with_the_built_in_model(folder):
    """Latents of a whole run of the model that was trained here."""
    assert main(["export", "emoji", str(folder / "emoji"), "--form", "diffusers"]) == 0
    pipe = diffusers.StableDiffusionGLIGENPipeline.from_pretrained(folder / "emoji")
    pipe.to(torch.float32)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    noise = np.random.default_rng(0).standard_normal((1, 8, 8, 12)).astype(np.float32)
    theirs = drawn(pipe, noise)
    ours = Pipeline.load("emoji")(
        LAYOUT, wiring="sequential", solver="ddim", gamma=1.0, num_steps=STEPS,
        guidance_scale=SCALE, latents=noise, output="latents",
    )  # fmt: skip
    assert np.abs(ours - theirs).max() < TOLERANCE / 10 * np.abs(theirs).max()


def test_another_dtype_is_written(folder, tiny_model_dir):
    export(tiny_model_dir, folder / "half", "diffusers", dtype="float16")
    found = states(folder / "half")
    assert {t.dtype for part in found.values() for t in part.values()} == {torch.float16}
    export(tiny_model_dir, folder / "brain", "adapter", dtype="bfloat16")


def test_values_too_large_for_a_dtype_are_refused(tiny_model_dir, tmp_path):
    model = read_model(tiny_model_dir)
    arrays = dict(flatten(model.params))
    arrays["unet/conv_in/bias"] = np.full_like(arrays["unet/conv_in/bias"], 1e6)
    write_model(tmp_path / "large", model.config, arrays.items(), model.tokenizer_json, {})
    with pytest.raises(ValueError, match=r"conv_in\.bias has NaN, or values too large for float16"):
        export(tmp_path / "large", tmp_path / "x", "diffusers", dtype="float16")
    assert not (tmp_path / "x").exists()


def test_noise_tables_are_those_of_the_original():
    parts, _ = open_original(originals.TEXT_BOX)
    kept = alphas_cumprod(read_model(kinds.converted("text_box")).config.schedule)
    ours = noise_tables(kept)
    assert ours.keys() == set(parts["diffusion"].keys())
    for name, table in ours.items():
        np.testing.assert_allclose(table, parts["diffusion"].read(name), rtol=2e-5, atol=1e-7)


# ---- what a form cannot hold


def test_what_a_form_cannot_hold_is_refused_and_nothing_is_left(folder, tiny_model_dir, tmp_path):
    canny = kinds.converted("canny")
    inpaint = kinds.converted("inpaint")
    for model, form, message in (
        (canny, "diffusers", "diffusers has no pipeline for models of kind canny"),
        (canny, "adapter", "this one is of kind canny: use the form gligen"),
        (inpaint, "adapter", "kind text, for inpainting: use the form gligen"),
        (tiny_model_dir, "gligen", "the U-Net cannot be exported in this form: .* 32 norm groups"),
        (tiny_model_dir, "ckpt", "form 'ckpt' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "x", form)
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        export(tiny_model_dir, tmp_path / "x", "adapter", dtype="int8")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="already exists"):
        export(tiny_model_dir, tmp_path / "there", "diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_form_gligen_says_that_it_needs_torch(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"needs torch, .*: pip install 'reground-jax\[verify\]'"):
        export(kinds.converted("text_box"), tmp_path / "x", "gligen")


def test_the_command_lists_the_files(tiny_model_dir, tmp_path, capsys):
    assert main(["export", str(tiny_model_dir), str(tmp_path / "f"), "--form", "diffusers"]) == 0
    out = capsys.readouterr().out
    assert f"MB  {tmp_path}/f/model_index.json" in out
    index = json.loads((tmp_path / "f" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionGLIGENPipeline"
    from reground_jax.cli import export as command

    assert command.FORMS == FORMS
