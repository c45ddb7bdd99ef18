"""Single files and adapters in the forms that people share, from one tiny model."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from reground_jax.convert import configs, openclip
from reground_jax.convert.adapters import add_adapter
from reground_jax.convert.conversion import convert, gather
from reground_jax.convert.ldm import LDM_PREFIXES, unet_prefixes, vae_prefixes
from reground_jax.convert.sources import Located, Tensors, detect, open_tensors, resolve
from reground_jax.convert.verification import TOLERANCE, verify
from tests import originals, reference

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("single")


@pytest.fixture(scope="module")
def tokenizer(folder) -> Path:
    return originals.write_tiny_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def adapter(folder) -> Path:
    return originals.write_adapter(folder / "gligen.safetensors")


@pytest.fixture(scope="module")
def plain(folder) -> State:
    """Plain Stable Diffusion 1.x, as people share it."""
    return safetensors.torch.load_file(originals.write_single_file(folder / "plain.safetensors"))


@pytest.fixture(scope="module")
def expected(folder, plain, tokenizer) -> dict:
    return gathered(folder / "plain.safetensors", tokenizer)


def gathered(path: Path, tokenizer: Path, **options) -> dict:
    """The networks' arrays and configs, as a conversion would read them."""
    found = gather(resolve(path), tokenizer=tokenizer, **options)
    return {"config": found.config, "arrays": arrays(found.tensors)}


def arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    return {
        f"{network}.{name}": read(located)
        for network, named in tensors.items()
        for name, located in named.items()
        if not name.endswith("position_ids")
    }


def read(located: Located) -> np.ndarray:
    return located.file.read(located.name)


def check_same(ours: dict, theirs: dict) -> None:
    assert ours["config"] == theirs["config"]
    assert ours["arrays"].keys() == theirs["arrays"].keys()
    for name, array in ours["arrays"].items():
        other = theirs["arrays"][name]
        np.testing.assert_array_equal(array.squeeze(), other.squeeze(), name)  # 1x1 or linear


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda weights: {
        new + n.removeprefix(old) if n.startswith(old) else n: w for n, w in weights.items()
    }


def added(name: str) -> Callable[[State], State]:
    return lambda weights: weights | {name: torch.ones(2)}


TEXT = "cond_stage_model"
CLIP = f"{TEXT}.transformer"
SAME = {
    "text_model. without transformer.": renamed(f"{CLIP}.text_model", f"{TEXT}.text_model"),
    "transformer. without text_model.": renamed(f"{CLIP}.text_model", CLIP),
    "neither": renamed(f"{CLIP}.text_model", TEXT),
    "half precision": lambda weights: {n: w.half() for n, w in weights.items()},
    "averaged weights": added("model_ema.diffusion_modelinput_blocks00weight"),
}


@pytest.mark.parametrize("form", SAME)
def test_forms_of_a_base_are_one_model(folder, plain, expected, tokenizer, form):
    path = folder / "form.safetensors"
    safetensors.torch.save_file(SAME[form](plain), path)
    found = gathered(path, tokenizer)
    if form == "half precision":
        found["arrays"] = {n: a.astype(np.float32) for n, a in found["arrays"].items()}
        expected = expected | {
            "arrays": {
                n: a.astype(np.float16).astype(np.float32) for n, a in expected["arrays"].items()
            }
        }
    check_same(found, expected)


CHECKPOINTS = {
    "flat": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3, "global_step": "many"},
    "in another": lambda weights: {"state_dict": {"state_dict": weights, "epoch": 3}},
    "dtype and size beside it": lambda weights: {
        "state_dict": weights, "dtype": torch.float32, "size": torch.Size([1, 2]),
        "device": torch.device("cpu"), "loss": np.float64(0.5),
    },
}  # fmt: skip


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_forms_of_a_pickle_are_one_model(folder, plain, expected, tokenizer, form):
    path = folder / "form.ckpt"
    torch.save(CHECKPOINTS[form](plain), path)
    check_same(gathered(path, tokenizer), expected)


def test_fusers_inside_a_file_with_the_position_net_outside_its_prefix(folder, plain, tokenizer):
    fusers = safetensors.torch.load_file(originals.write_adapter(folder / "inside.safetensors"))
    prefix = LDM_PREFIXES["unet"]
    whole, odd = (
        plain | {(outside if n.startswith("position_net.") else prefix) + n: w
                 for n, w in fusers.items()}
        for outside in (prefix, "")
    )  # fmt: skip
    found = []
    for weights in (whole, odd):
        safetensors.torch.save_file(weights, folder / "whole.safetensors")
        found.append(gathered(folder / "whole.safetensors", tokenizer))
    assert found[0]["config"].unet.grounding == "text"
    check_same(*found)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "model.", "unet.", "x."])
def test_what_stands_before_all_names_of_an_adapter_is_left_out(
    folder, plain, adapter, tokenizer, prefix
):
    weights = safetensors.torch.load_file(adapter)
    path = folder / "prefixed.safetensors"
    safetensors.torch.save_file({prefix + n: w for n, w in weights.items()}, path)
    assert detect(path).kind == "adapter"
    base = gather(resolve(folder / "plain.safetensors"), tokenizer=tokenizer)
    found, expected = (
        {"config": whole.config, "arrays": arrays(whole.tensors)}
        for whole in (add_adapter(base, resolve(file), "base") for file in (path, adapter))
    )
    assert found["config"].unet.grounding == "text"
    check_same(found, expected)


def test_an_adapter_with_two_prefixes_is_none(folder, adapter):
    weights = safetensors.torch.load_file(adapter)
    weights["unet.input_blocks.1.1.transformer_blocks.0.fuser.alpha_attn"] = torch.ones(())
    weights["down_blocks.0.weight"] = torch.ones(1)
    safetensors.torch.save_file(weights, folder / "odd.safetensors")
    with pytest.raises(ValueError, match="not a known kind of checkpoint"):
        detect(folder / "odd.safetensors")


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("vae", r"has no vae \(first_stage_model\.\*\): add one with --vae"),
        ("text_encoder", r"has no text_encoder \(cond_stage_model\.\*\): use a checkpoint with"),
    ],
)
def test_a_file_without_a_network_says_which(folder, plain, tokenizer, drop, message):
    kept = {n: w for n, w in plain.items() if not n.startswith(LDM_PREFIXES[drop])}
    safetensors.torch.save_file(kept, folder / "part.safetensors")
    with pytest.raises(ValueError, match=message):
        gathered(folder / "part.safetensors", tokenizer)


def test_a_unet_alone_says_so(folder, plain):
    prefix = LDM_PREFIXES["unet"]
    alone = {n.removeprefix(prefix): w for n, w in plain.items() if n.startswith(prefix)}
    safetensors.torch.save_file(alone, folder / "unet.safetensors")
    with pytest.raises(ValueError, match="a U-Net alone, without text encoder and autoencoder"):
        detect(folder / "unet.safetensors")


# ---- an autoencoder from elsewhere


def test_a_file_without_autoencoder_takes_one_in_any_form(folder, plain, expected, tokenizer):
    prefix = LDM_PREFIXES["vae"]
    without = folder / "without.safetensors"
    kept = {n: w for n, w in plain.items() if not n.startswith(prefix)}
    safetensors.torch.save_file(kept, without)
    alone = {n.removeprefix(prefix): w for n, w in plain.items() if n.startswith(prefix)}
    safetensors.torch.save_file(alone, folder / "vae.safetensors")
    torch.save({"state_dict": alone | {"loss.logvar": torch.ones(())}}, folder / "vae.pt")
    diffusers = originals.write_diffusers_base(folder / "diffusers")
    for vae in ("vae.safetensors", "vae.pt", "plain.safetensors"):
        found = gathered(without, tokenizer, vae=folder / vae)
        found["arrays"].pop("vae.loss.logvar", None)
        check_same(found, expected)
    for vae in (diffusers, diffusers / "vae"):
        found = gathered(without, tokenizer, vae=vae)
        check_same(found, expected)


def test_another_autoencoder_takes_the_place_of_the_own(folder, expected, tokenizer):
    other = AutoencoderKL(**reference.VAE | {"norm_num_groups": 8, "scaling_factor": 0.25})
    other.save_pretrained(folder / "other")
    found = gathered(folder / "plain.safetensors", tokenizer, vae=folder / "other")
    assert found["config"].vae.scaling_factor == 0.25
    assert found["config"].unet == expected["config"].unet
    ours = found["arrays"]["vae.decoder.conv_in.weight"]
    np.testing.assert_array_equal(ours, other.decoder.conv_in.weight.detach().numpy())


def test_what_is_no_autoencoder_is_refused(folder, adapter, tokenizer):
    for vae, message in (
        (adapter, "has no autoencoder by the original names"),
        (folder / "nowhere", "nowhere does not exist; pass a diffusers AutoencoderKL"),
        (tokenizer, "config.json is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            gathered(folder / "plain.safetensors", tokenizer, vae=vae)
    odd = AutoencoderKL(**reference.VAE | {"latent_channels": 6})
    odd.save_pretrained(folder / "six")
    with pytest.raises(ValueError, match="the VAE has 6 latent channels"):
        gathered(folder / "plain.safetensors", tokenizer, vae=folder / "six")


# ---- Stable Diffusion 2.x


@functools.cache
def second_networks() -> dict[str, torch.nn.Module]:
    """Small, but with what no shape tells as in real files: heads of 64, 32 groups."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=[1, 2],
        cross_attention_dim=128,
        use_linear_projection=True,
        attention_type="gated",
    )
    special = {"bos_token_id": 0, "eos_token_id": 255, "pad_token_id": 0}
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=256, hidden_size=128, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=2, hidden_act="gelu", **special,
        )
    )  # fmt: skip
    vae = AutoencoderKL(**reference.VAE | {"block_out_channels": (32,) * 4, "norm_num_groups": 32})
    networks = {"unet": unet, "text_encoder": text, "vae": vae}
    for seed, network in enumerate(networks.values()):
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return networks


@functools.cache
def second() -> State:
    """The single file of `second_networks`. diffusers' own converters read it in `verify`."""
    networks, weights = second_networks(), {}
    tables = {
        "unet": unet_prefixes(configs.unet_config(networks["unet"].config)),
        "vae": vae_prefixes(configs.vae_config(networks["vae"].config)),
    }
    for network, table in tables.items():
        back = {theirs: ours for ours, theirs in table.items()}
        for name, tensor in networks[network].state_dict().items():
            head = name
            while head not in back:
                head = head.rpartition(".")[0]
            weights[LDM_PREFIXES[network] + back[head] + name[len(head) :]] = tensor
    text = {
        n.removeprefix("text_model."): t
        for n, t in networks["text_encoder"].state_dict().items()
        if not n.endswith("position_ids")
    }
    start = openclip.PREFIX
    weights |= {
        f"{start}token_embedding.weight": text["embeddings.token_embedding.weight"],
        f"{start}positional_embedding": text["embeddings.position_embedding.weight"],
        f"{start}ln_final.weight": text["final_layer_norm.weight"],
        f"{start}ln_final.bias": text["final_layer_norm.bias"],
        f"{start}text_projection": torch.randn(128, 128),
        f"{start}logit_scale": torch.ones(()),
    }
    for n in range(3):  # the last layer is not used, and is another
        theirs, ours = f"encoder.layers.{min(n, 1)}.", f"{start}transformer.resblocks.{n}."
        for leaf in ("weight", "bias"):
            projections = [text[f"{theirs}self_attn.{x}_proj.{leaf}"] for x in "qkv"]
            weights[f"{ours}attn.in_proj_{leaf}"] = torch.cat(projections) + (n == 2)
            for new, old in {
                "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1",
                "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
            }.items():  # fmt: skip
                weights[f"{ours}{new}.{leaf}"] = text[f"{theirs}{old}.{leaf}"].clone()
    return {name: tensor.contiguous() for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def second_file(folder) -> Path:
    path = folder / "second.safetensors"
    safetensors.torch.save_file(second(), path)
    return path


def test_stable_diffusion_2_converts_as_diffusers_reads_it(folder, second_file, tokenizer):
    options = {"tokenizer": tokenizer, "prediction": "epsilon"}
    convert(second_file, folder / "second", **options)
    errors = verify(second_file, folder / "second")
    assert set(errors) == {"text_encoder", "unet", "vae"}
    assert max(errors.values()) < TOLERANCE / 10
    found = gathered(second_file, tokenizer, prediction="epsilon")
    text = found["config"].text_encoder
    assert (text.network.num_layers, text.network.num_heads) == (2, 2)
    assert text.network.activation == "gelu" and text.tokenizer.pad_token_id == 0
    assert found["config"].unet.num_heads == (1, 2)
    for n, t in second_networks()["text_encoder"].state_dict().items():
        name = f"text_encoder.{n.removeprefix('text_model.')}"
        np.testing.assert_array_equal(found["arrays"][name], t.numpy(), name)


def test_all_layers_of_a_vit_h_without_its_last_are_used(folder):
    start = openclip.PREFIX
    weights = {f"{start}ln_final.weight": torch.ones(openclip.VIT_H_WIDTH)}
    for count in (23, 24):
        layers = {
            f"{start}transformer.resblocks.{n}.ln_1.weight": torch.ones(1) for n in range(count)
        }
        safetensors.torch.save_file(weights | layers, folder / "h.safetensors")
        clip = openclip.as_clip(open_tensors(folder / "h.safetensors"))
        assert len([name for name in clip.keys() if ".layers." in name]) == 23


def test_what_a_unet_predicts_is_asked_for_or_read(folder, plain, second_file, tokenizer):
    with pytest.raises(ValueError, match="does not say what its U-Net predicts: pass --prediction"):
        gathered(second_file, tokenizer)
    found = gathered(second_file, tokenizer, prediction="v_prediction")["config"]
    assert found.schedule.prediction_type == "v_prediction"
    assert found.unet.sample_size == 96  # those of 768 pixels
    path = folder / "v.safetensors"
    safetensors.torch.save_file(plain | {"v_pred": torch.ones(0)}, path)
    for given in (None, "v_prediction"):
        found = gathered(path, tokenizer, prediction=given)["config"]
        assert found.schedule.prediction_type == "v_prediction" and found.unet.sample_size == 64
    safetensors.torch.save_file(plain | {"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}, path)
    schedule = gathered(path, tokenizer)["config"].schedule
    assert schedule.rescale_betas_zero_snr and schedule.timestep_spacing == "trailing"
    with pytest.raises(ValueError, match="says that its U-Net predicts v"):
        gathered(path, tokenizer, prediction="epsilon")
    diffusers = originals.write_diffusers_base(folder / "says")
    with pytest.raises(ValueError, match="says what its U-Net predicts: leave out --prediction"):
        gathered(diffusers, tokenizer, prediction="epsilon")


def test_queries_keys_and_values_of_unequal_size_are_refused(folder, tokenizer):
    name = f"{openclip.PREFIX}transformer.resblocks.0.attn.in_proj_bias"
    safetensors.torch.save_file(second() | {name: torch.ones(385)}, folder / "odd.safetensors")
    with pytest.raises(ValueError, match=r"in_proj_bias has shape \(385,\), but it should hold"):
        gathered(folder / "odd.safetensors", tokenizer, prediction="epsilon")
