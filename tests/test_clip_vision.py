"""CLIP's image transformer against transformers, converted by the real converter."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from reground_jax.config import CLIPVisionConfig, ModelConfig, UNetConfig
from reground_jax.convert.configs import vision_config
from reground_jax.convert.conversion import read_arrays
from reground_jax.convert.image_towers import gather_image_encoder
from reground_jax.convert.keys import match
from reground_jax.model import leaf_shapes, network
from reground_jax.networks.clip_vision import FEATURE_NORM, CLIPVisionModel, image_features
from reground_jax.storage.checkpoint import unflatten
from tests import reference
from tests.reference import nhwc, relative_error

TOLERANCE = 1e-5  # of the largest value, in float32 on both sides
B32 = CLIPVisionConfig(
    width=768, num_layers=12, num_heads=12, mlp_width=3072, patch_size=32, projection_width=512
)


def model_config(image: CLIPVisionConfig) -> ModelConfig:
    """Of a model with this image encoder; nothing else of it fits."""
    return ModelConfig(UNetConfig(text_width=image.projection_width), image_encoder=image)


def converted(folder: Path) -> CLIPVisionModel:
    """Our network from a folder of transformers."""
    image, tensors = gather_image_encoder(folder)
    config = model_config(image)
    prefix = "image_encoder/"
    shapes = {name: s for name, s in leaf_shapes(config).items() if name.startswith(prefix)}
    found = {name: t.file.shape(t.name) for name, t in tensors.items()}
    leaves = match(shapes, {"image_encoder": found})
    params = unflatten(read_arrays(leaves, {"image_encoder": tensors}, None))["image_encoder"]
    return nnx.merge(network(config, "image_encoder")[0], jax.tree.map(jnp.array, params))


def pixels(theirs, count: int = 3) -> torch.Tensor:
    side = theirs.config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("name", reference.VISIONS)
def test_the_image_encoder_equals_transformers(name, activation, tmp_path):
    theirs = reference.image_encoder(name, hidden_act=activation)
    theirs.save_pretrained(tmp_path)
    images = pixels(theirs)
    with torch.no_grad():
        expected = theirs(images).image_embeds
    ours = converted(tmp_path)(jnp.asarray(nhwc(images)))
    assert relative_error(ours, expected) < TOLERANCE
    wrong = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[activation]
    other = reference.image_encoder(name, hidden_act=wrong)
    with torch.no_grad():
        assert relative_error(ours, other(images).image_embeds) > 100 * TOLERANCE


def test_the_image_encoder_of_a_full_clip_equals_transformers(tmp_path):
    theirs = reference.clip_model("l14")
    theirs.save_pretrained(tmp_path)
    images = pixels(reference.image_encoder("l14"))
    with torch.no_grad():
        expected = theirs.visual_projection(theirs.vision_model(images).pooler_output)
    assert relative_error(converted(tmp_path)(jnp.asarray(nhwc(images))), expected) < TOLERANCE


def penultimate_layer(theirs, images):
    h = theirs.vision_model(images, output_hidden_states=True).hidden_states[-2]
    return theirs.vision_model.post_layernorm(h[:, 0])


def no_last_norm(theirs, images):
    return theirs.vision_model(images).last_hidden_state[:, 0]


def mean_of_patches(theirs, images):
    h = theirs.vision_model(images).last_hidden_state
    return theirs.vision_model.post_layernorm(h[:, 1:].mean(1))


def class_token_last(theirs, images):
    network = theirs.vision_model
    positions = network.embeddings.position_embedding.weight
    tokens = network.embeddings(images) - positions
    h = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1) + positions
    h = network.encoder(inputs_embeds=network.pre_layrnorm(h)).last_hidden_state
    return network.post_layernorm(h[:, -1])


@pytest.mark.parametrize(
    "mistake", [penultimate_layer, no_last_norm, mean_of_patches, class_token_last]
)
def test_a_mistake_would_be_noticed(mistake, tmp_path):
    theirs = reference.image_encoder("l14")
    theirs.save_pretrained(tmp_path)
    images = pixels(theirs)
    with torch.no_grad():
        wrong = theirs.visual_projection(mistake(theirs, images))
    ours = converted(tmp_path)(jnp.asarray(nhwc(images)))
    assert relative_error(ours, wrong) > 1000 * TOLERANCE


def test_half_precision_is_close_and_stays_half(tmp_path):
    theirs = reference.image_encoder("l14")
    theirs.save_pretrained(tmp_path)
    ours, images = converted(tmp_path), jnp.asarray(nhwc(pixels(theirs)))
    low = ours(images, dtype=jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    assert relative_error(low, ours(images)) < 0.05  # as the U-Net's in test_networks.py


@pytest.mark.parametrize(("config", "millions"), [(CLIPVisionConfig(), 303.966), (B32, 87.849)])
def test_parameter_counts_are_the_published_ones(config, millions):
    _, shapes = network(model_config(config), "image_encoder")
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 3) == millions


def test_the_default_is_openais_large_model_and_transformers_default_its_base():
    large = reference.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    assert vision_config(large.to_dict()) == CLIPVisionConfig()
    assert vision_config(reference.CLIPVisionConfig().to_dict()) == B32


# ---- features for GLIGEN


def gligens(embeds: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`project` and what follows it in gligen_inference.py."""
    feature = embeds @ matrix.T.transpose(1, 0)
    return (feature / torch.norm(feature, dim=-1, keepdim=True)) * 28.7


def test_features_are_gligens_and_a_transposed_projection_is_far_off():
    random = torch.Generator().manual_seed(6)
    embeds = torch.randn(2, 3, 24, generator=random)
    matrix = torch.randn(24, 24, generator=random)
    expected, kernel = gligens(embeds, matrix), jnp.asarray(matrix.numpy())
    ours = image_features(jnp.asarray(embeds.numpy()), kernel)
    assert relative_error(ours, expected) < TOLERANCE
    transposed = image_features(jnp.asarray(embeds.numpy()), kernel.T)
    assert relative_error(transposed, expected) > 0.5
    np.testing.assert_allclose(jnp.linalg.norm(ours, axis=-1), FEATURE_NORM, rtol=1e-6)


def test_features_are_float32_whatever_comes_in_and_zeros_stay_zeros():
    embeds = jnp.zeros((2, 4), jnp.bfloat16).at[0].set(1)
    features = image_features(embeds, jnp.eye(4, dtype=jnp.bfloat16))
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features[0], FEATURE_NORM / 2, rtol=1e-6)
    assert (features[1] == 0).all()


# ---- the config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_heads=7), "width 1024 does not divide into 7 heads"),
        (dict(patch_size=15), "224 pixels does not divide into patches of 15"),
        (dict(num_layers=0), r"CLIPVisionConfig\.num_layers is 0: it must be from 1 to 128"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CLIPVisionConfig(**fields)
