"""Where an image encoder and its projection come from, and the projection that is the wrong way."""

import json
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection

from reground_jax.config import CLIPVisionConfig, ModelConfig, UNetConfig
from reground_jax.convert import configs, image_towers
from reground_jax.convert.conversion import read_arrays
from reground_jax.convert.file_names import clip_files, hub_files
from reground_jax.convert.image_towers import gather_image_tower, gather_projection
from reground_jax.convert.keys import KeyMismatch, match
from reground_jax.convert.rules import UnsupportedConfig
from reground_jax.model import leaf_shapes
from tests import reference

WIDTH = reference.VISIONS["l14"]["projection_dim"]


def arrays(tower: image_towers.ImageTower) -> dict[str, np.ndarray]:
    """Our parameters, as `convert` makes them."""
    unet = UNetConfig(text_width=tower.config.projection_width)
    shapes = {
        name: shape
        for name, shape in leaf_shapes(ModelConfig(unet, image_encoder=tower.config)).items()
        if name.startswith("image_")
    }
    found = {
        network: {name: t.file.shape(t.name) for name, t in tensors.items()}
        for network, tensors in tower.tensors.items()
    }
    return dict(read_arrays(match(shapes, found), tower.tensors, None))


def kernel(tower: image_towers.ImageTower) -> np.ndarray:
    return arrays(tower)["image_project/kernel"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A full CLIPModel; no test changes it."""
    folder = tmp_path_factory.mktemp("clip")
    reference.clip_model("l14").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def matrix() -> torch.Tensor:
    """GLIGEN's projection_matrix for `clip`."""
    return reference.clip_model("l14").text_projection.weight.detach()


def write_diffusers(folder: Path, matrix: torch.Tensor, **options) -> Path:
    """The parts of a diffusers model for reference images."""
    vision = reference.CLIPVisionModelWithProjection(
        reference.CLIPVisionConfig(**reference.VISIONS["l14"])
    )
    clip = reference.clip_model("l14")
    vision.vision_model.load_state_dict(clip.vision_model.state_dict())
    vision.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    vision.save_pretrained(folder / "image_encoder", **options)
    project = CLIPImageProjection(WIDTH)
    project.project.weight = torch.nn.Parameter(matrix.T.contiguous())
    project.save_pretrained(folder / "image_project", **options)
    return folder


@pytest.fixture(autouse=True)
def no_warning():
    """A warning is an error, but where a test expects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- sources


def test_all_sources_of_one_clip_give_the_same_arrays(clip, matrix, tmp_path):
    folder = write_diffusers(tmp_path / "model", matrix)
    torch.save(matrix, tmp_path / "projection_matrix")
    towers = [
        gather_image_tower(clip=clip),
        gather_image_tower(folder),
        gather_image_tower(folder, clip=clip),
        gather_image_tower(folder, projection=tmp_path / "projection_matrix"),
        gather_image_tower(clip=clip, projection=tmp_path / "projection_matrix"),
        gather_image_tower(clip=folder / "image_encoder", projection=clip),
        gather_image_tower(clip=folder),
    ]
    first = arrays(towers[0])
    np.testing.assert_array_equal(first["image_project/kernel"], matrix.numpy())
    for tower in towers:
        assert tower.config == towers[0].config == configs.vision_config(reference.VISIONS["l14"])
        found = arrays(tower)
        assert found.keys() == first.keys()
        for name, array in first.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_variant_of_a_folder_is_only_the_folders(clip, matrix, tmp_path):
    folder = write_diffusers(tmp_path / "model", matrix, variant="ema")
    assert kernel(gather_image_tower(folder, variant="ema")).shape == (WIDTH, WIDTH)
    assert kernel(gather_image_tower(folder, clip=clip, variant="ema")).shape == (WIDTH, WIDTH)
    with pytest.raises(ValueError, match="image_encoder has no weights"):
        gather_image_tower(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_old_files_with_positions_are_read(name, clip, tmp_path):
    state = safetensors.torch.load_file(clip / "model.safetensors")
    for part, count in (("vision", 17), ("text", 77)):
        state[f"{part}_model.embeddings.position_ids"] = torch.arange(count)[None]
    (tmp_path / "config.json").write_bytes((clip / "config.json").read_bytes())
    write = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    write(state, tmp_path / name)
    expected = arrays(gather_image_tower(clip=clip))
    for path, array in arrays(gather_image_tower(clip=tmp_path)).items():
        np.testing.assert_array_equal(array, expected[path])


def test_an_image_encoder_that_misses_or_adds_an_array_is_refused(clip, tmp_path):
    state = safetensors.torch.load_file(clip / "model.safetensors")
    del state["vision_model.pre_layrnorm.bias"]
    state["vision_model.stranger"] = torch.zeros(1)
    (tmp_path / "config.json").write_bytes((clip / "config.json").read_bytes())
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(KeyMismatch) as caught:
        arrays(gather_image_tower(clip=tmp_path))
    assert "- image_encoder: pre_layrnorm.bias is missing" in str(caught.value)
    assert "+ image_encoder: stranger matches no parameter" in str(caught.value)


def test_a_clip_without_a_text_projection_needs_one(matrix, tmp_path):
    folder = write_diffusers(tmp_path / "model", matrix)
    with pytest.raises(ValueError, match=r"neither project\.weight nor text_projection\.weight"):
        gather_image_tower(clip=folder / "image_encoder")
    with pytest.raises(ValueError, match="CLIP nowhere does not exist; pass a folder"):
        gather_image_tower(clip="nowhere")
    torch.save(matrix[0], tmp_path / "vector")
    with pytest.raises(ValueError, match=rf"has shape \({WIDTH},\), expected a matrix"):
        gather_projection(tmp_path / "vector")


# ---- the wrong way round


def test_a_folders_projection_that_is_not_transposed_is_noticed(clip, matrix, tmp_path):
    folder = write_diffusers(tmp_path / "model", matrix.T)
    with pytest.warns(UserWarning, match="holds the transpose of the projection") as caught:
        tower = gather_image_tower(folder, clip=clip)
    assert str(folder / "image_project") in str(caught[0].message)
    np.testing.assert_array_equal(kernel(tower), matrix.T.numpy())  # as it is in the file
    gather_image_tower(folder)  # nothing to compare with


def test_a_transposed_matrix_and_another_clips_are_noticed(clip, matrix, tmp_path):
    torch.save(matrix.T.contiguous(), tmp_path / "transposed")
    with pytest.warns(UserWarning, match="holds the transpose of the projection"):
        gather_image_tower(clip=clip, projection=tmp_path / "transposed")
    torch.save(torch.eye(WIDTH), tmp_path / "other")
    with pytest.warns(UserWarning, match="holds a projection that is not this CLIP's"):
        gather_image_tower(clip=clip, projection=tmp_path / "other")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_projection_is_the_same(dtype, clip, matrix, tmp_path):
    torch.save(matrix.to(dtype), tmp_path / "half")
    gather_image_tower(clip=clip, projection=tmp_path / "half")


def test_a_matrix_that_torch_saved_transposed_in_place_is_read_as_it_is(matrix, tmp_path):
    torch.save(matrix.T, tmp_path / "view")  # strides, not a copy
    located = gather_projection(tmp_path / "view")
    np.testing.assert_array_equal(located.file.read(located.name), matrix.numpy())


# ---- the Hub


def test_the_default_is_openais_clip_from_the_hub_without_what_is_not_needed(
    clip, tmp_path, monkeypatch
):
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "vocab.json"]
    asked = []

    def snapshot(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, sorted(allow_patterns)))
        return str(clip)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    gather_image_tower()
    assert asked == [("openai/clip-vit-large-patch14", ["config.json", "model.safetensors"])]


def test_the_parts_for_reference_images_are_downloaded_where_they_are():
    parts = [f"{part}/{name}" for part in ("image_encoder", "image_project")
             for name in ("config.json", "model.safetensors")]  # fmt: skip
    plain = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert set(hub_files(plain + parts)) == {*plain, *parts}
    assert clip_files(plain + parts + ["config.json"]) == parts
    assert hub_files(plain + parts[:2]) == plain  # other models have an image encoder, too
    with pytest.raises(ValueError, match="it has no CLIP model: looked for"):
        clip_files(["config.json", "README.md"])


# ---- configs

OLD = {  # as that of openai/clip-vit-large-patch14, without what transformers writes for any model
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {"model_type": "clip_text_model", "projection_dim": 768},
    "text_config_dict": {"hidden_size": 768},
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": {
        "add_cross_attention": False, "architectures": None, "attention_dropout": 0.0,
        "bos_token_id": None, "eos_token_id": None, "hidden_act": "quick_gelu",
        "hidden_size": 1024, "id2label": {"0": "LABEL_0"}, "image_size": 224,
        "intermediate_size": 4096, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": None,
        "patch_size": 14, "projection_dim": 768, "use_bfloat16": False,
    },
    "vision_config_dict": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
    },
}  # fmt: skip


def without(fields: dict, *names: str) -> dict:
    return {name: value for name, value in fields.items() if name not in names}


def test_a_config_of_a_full_clip_is_that_of_its_image_encoder():
    assert configs.vision_config(OLD) == CLIPVisionConfig()
    assert configs.vision_config(OLD | {"vision_config_dict": None}) == CLIPVisionConfig()
    assert configs.vision_config(without(OLD, "vision_config")) == CLIPVisionConfig()
    inner = OLD["vision_config"]
    assert configs.vision_config(inner) == CLIPVisionConfig()
    for side in ([14, 14], 14):
        assert configs.vision_config(inner | {"patch_size": side}).patch_size == 14


def test_the_width_of_a_projection_is_that_of_the_class_that_has_it():
    other = OLD | {"vision_config_dict": None, "projection_dim": 512}
    assert configs.vision_config(other).projection_width == 512
    assert configs.vision_config(without(other, "projection_dim")).projection_width == 512
    assert configs.vision_config(OLD["vision_config"]).projection_width == 768
    assert configs.vision_config({}).projection_width == 512


@pytest.mark.parametrize("kind", [reference.CLIPVisionConfig, reference.CLIPConfig])
def test_an_absent_field_has_transformers_default(kind):
    fields = {"model_type": kind.model_type}
    found = configs.vision_config(fields)
    assert found == configs.vision_config(json.loads(kind().to_json_string(use_diff=False)))
    vision = getattr(kind(), "vision_config", kind())
    assert (found.width, found.num_heads, found.mlp_width, found.patch_size) == (
        vision.hidden_size, vision.num_attention_heads, vision.intermediate_size, vision.patch_size
    )  # fmt: skip
    assert found.projection_width == kind().projection_dim


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'quick_gelu' or 'gelu'"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
        ({"num_channels": 4}, "num_channels is 4, expected 3"),
        ({"num_attention_heads": 5}, r"a divisor of hidden_size \(768\)"),
        ({"patch_size": 15}, r"patch_size is 15, expected a divisor of image_size \(224\)"),
        ({"image_size": [224, 196]}, "the same one everywhere"),
        ({"model_type": "siglip_vision_model"}, "model_type is 'siglip_vision_model'"),
        ({"architectures": ["CLIPVisionModel"]}, "expected 'CLIPVisionModelWithProjection'"),
        ({"novelty": 1}, "field novelty"),
        (OLD | {"architectures": ["CLIPSegModel"]}, "architectures is .*CLIPSegModel"),
        (OLD | {"novelty": 1}, "CLIP config: field novelty"),
        (OLD | {"vision_config": 5}, "vision_config is 5, expected a JSON object"),
        (OLD | {"vision_config_dict": {"patch_size": 14}}, "contradict each other"),
        (
            OLD | {"vision_config": OLD["vision_config"] | {"novelty": 1}},
            "CLIP config, vision_config: field novelty",
        ),
    ],
)
def test_an_image_encoder_that_is_not_built_is_refused(fields, message):
    with pytest.raises(UnsupportedConfig, match=message):
        configs.vision_config(fields)


def test_a_text_encoder_is_no_image_encoder(tmp_path):
    reference.text_encoder("sd1").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedConfig, match="model_type is 'clip_text_model'"):
        gather_image_tower(clip=tmp_path)
