"""LoRA files: every spelling of a module, and all that is refused, each in one sentence."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from reground_jax.convert.conversion import read_arrays
from reground_jax.convert.keys import leaves_of
from reground_jax.convert.lora import deltas_of, find, module_table, read, with_deltas
from reground_jax.convert.lora_names import spellings
from reground_jax.convert.sources import detect, resolve_lora
from reground_jax.model import leaf_shapes
from tests import kinds, loras
from tests.loras import QUERY, TEXT_QUERY, base, factor, kohya, leaves, normal, pair, peft, save

FUSER = "down_blocks.0.attentions.0.transformer_blocks.0.fuser"
CONV = "down_blocks.0.resnets.0.conv1"


@pytest.fixture
def file(tmp_path):
    """Writes a LoRA file."""
    return lambda arrays, metadata=None: save(tmp_path / "x.safetensors", arrays, metadata)


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(path, leaves())
    assert "\n" not in str(caught.value) and str(path.name) in str(caught.value)


# ---- names


KOHYA_TEXT = kohya(f"text_model.{TEXT_QUERY}", "lora_te_")
FULL = f"text_encoder.text_model.{TEXT_QUERY}"
OLD = FULL.replace("q_proj", "to_q_lora")


@pytest.mark.parametrize(
    ("network", "module", "down", "up"),
    [
        ("unet", kohya(QUERY), "lora_down.weight", "lora_up.weight"),
        ("unet", f"unet.{QUERY}", "lora.down.weight", "lora.up.weight"),
        ("unet", f"unet.{QUERY}", "lora_A.weight", "lora_B.weight"),
        ("unet", QUERY, "lora_A.default.weight", "lora_B.default.weight"),
        ("text_encoder", KOHYA_TEXT, "lora_down.weight", "lora_up.weight"),
        ("text_encoder", FULL, "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ("text_encoder", OLD, "down.weight", "up.weight"),
        ("text_encoder", f"text_encoder.{TEXT_QUERY}", "lora_A.weight", "lora_B.weight"),
        ("text_encoder", TEXT_QUERY, "lora_A.weight", "lora_B.weight"),
    ],
)
def test_each_form_names_the_same_weight(file, network, module, down, up):
    path = file({f"{module}.{down}": normal(2, 32), f"{module}.{up}": normal(32, 2)})
    found = read(path, leaves())
    ours = {"unet": QUERY, "text_encoder": TEXT_QUERY}[network]
    assert list(found[network]) == [f"{ours}.weight"] and detect(path).kind == "lora"
    assert sum(map(len, found.values())) == 1


def test_old_processors_name_the_output_without_its_zero(file):
    module = QUERY.replace("to_q", "to_out.0")
    old = (
        f"{QUERY.removesuffix('.to_q')}.processor.to_out_lora"  # before diffusers 0.17: no "unet."
    )
    path = file({f"{old}.down.weight": normal(2, 32), f"{old}.up.weight": normal(32, 2)})
    assert list(read(path, leaves())["unet"]) == [f"{module}.weight"]


def test_no_two_weights_share_a_spelling():
    """Dots become underscores, so different names could become equal, as 1_1 and 11."""
    shapes = {leaf.path: leaf.shape for leaf in leaves()}
    blocks = (str(number) for number in range(12))  # as many as a transformer of SDXL may have
    own = leaves_of(
        {p.replace("/blocks/0", f"/blocks/{b}"): s for b in blocks for p, s in shapes.items()}
    )
    names = [
        (leaf.path.split("/")[0], name.removesuffix(".weight"))
        for leaf in own
        if leaf.path.startswith(("unet/", "text_encoder/")) and leaf.path.endswith("/kernel")
        for name in leaf.sources
    ]
    found = [spelling for place in names for spelling in spellings(*place)]
    assert len(names) > 100 and len(found) == len(set(found)) == len(module_table(own))


def test_a_pickle_and_a_wrong_suffix_are_read_by_their_contents(tmp_path, file):
    arrays = pair(QUERY)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"state_dict": state}, tmp_path / "x.safetensors.txt")
    shutil.copy(file(arrays), tmp_path / "x.ckpt")
    assert factor(tmp_path / "x.safetensors.txt") == factor(tmp_path / "x.ckpt") == 1


def test_fusers_may_be_targeted(file):
    modules = [f"{FUSER}.attn.to_q", f"{FUSER}.linear", f"{FUSER}.ff.net.2"]
    path = file({k: v for module in modules for k, v in pair(module).items()})
    assert list(read(path, leaves())["unet"]) == [f"{module}.weight" for module in sorted(modules)]


# ---- sums


def test_convolutions_and_matrices_are_the_same_for_1x1(file):
    """proj_in is a 1x1 convolution in Stable Diffusion 1.x, a matrix in 2.x."""
    module = "down_blocks.0.attentions.0.proj_in"
    flat = {name: array.reshape(array.shape[:2]) for name, array in pair(module).items()}
    as_convolution = read(file(pair(module)), leaves())["unet"][f"{module}.weight"]
    weight = as_convolution.array(loras.width(module))
    as_matrix = read(file(flat), leaves())["unet"][f"{module}.weight"]
    assert (as_matrix.array(loras.width(module)) == weight).all() and weight.ndim == 4
    flat[f"{kohya(CONV)}.lora_down.weight"] = normal(2, 9 * 32)  # no order of axes is known
    flat[f"{kohya(CONV)}.lora_up.weight"] = normal(32, 2)
    refused(file(flat), r"1 weight of other shapes .*_conv1 is for \(32, 288\), here \(32, 32, 3,")


def test_sums_are_in_float32_and_rounded_once(file):
    half = {n: t for n, t in base().tensors["unet"].items() if n == f"{QUERY}.weight"}
    ((name, tensor),) = half.items()
    deltas = deltas_of(find([(file(pair(QUERY)), 1e-3)]), leaves())
    exact = with_deltas({"unet": half}, deltas)["unet"][name]
    whole = exact.read()
    assert exact.read(np.dtype(np.float16)).tolist() == whole.astype(np.float16).tolist()
    assert whole.dtype == np.float32 and (whole != tensor.read()).any()


@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_is_a_number_of_any_shape(file, shape):
    path = file(pair(QUERY, rank=2, alpha=np.full(shape, 3, np.float16)))
    assert factor(path) == 1.5


# ---- peft's and diffusers' configs


KEY = QUERY.replace("to_q", "to_k")


@pytest.mark.parametrize(
    ("config", "query", "key"),
    [
        ({}, 2, 2),
        ({"use_rslora": True}, 4, 4),
        ({"alpha_pattern": {"to_q": 1}}, 1 / 4, 2),
        ({"alpha_pattern": {"attn1.to_k": 1, "to_k": 3, f"^{QUERY}": 6}}, 6 / 4, 1 / 4),
        ({"alpha_pattern": {"o_q": 1, "^to_k": 1}}, 2, 2),  # only whole parts, only the whole name
        ({"rank_pattern": {"to_q": 4}, "r": 16}, 2, 2),  # ranks are those of the arrays
    ],
)
def test_pefts_config_scales(tmp_path, config, query, key):
    peft(tmp_path / "x", (QUERY, KEY), **config)
    path = resolve_lora(tmp_path / "x")
    assert factor(path) == query and factor(path, KEY) == key


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "of kind 'LOHA', and only plain LoRA"),
        ({"use_dora": True}, "of kind DoRA"),
        ({"lora_alpha": None}, "lora_alpha is None: it must be a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"alpha_pattern": [1]}, r"alpha_pattern is \[1\]"),
        ({"alpha_pattern": {"to_q": "1"}}, "alpha_pattern is"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "the regular expression"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
    ],
)
def test_configs_that_are_wrong_are_refused(tmp_path, config, message):
    path = peft(tmp_path / "x", **config)
    with pytest.raises(ValueError, match=rf"adapter_config\.json: .*{message}"):
        read(path, leaves())


def test_pefts_names_need_its_config(tmp_path):
    path = peft(tmp_path / "x")
    path.with_name("adapter_config.json").unlink()
    refused(path, r"no adapter_config\.json beside it, .*pass the folder that has both")


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_diffusers_metadata_scales(file, prefix):
    arrays = {f"{prefix}{QUERY}.lora_A.weight": normal(4, 32)}
    arrays[f"{prefix}{QUERY}.lora_B.weight"] = normal(32, 4)
    fields = {f"{prefix}lora_alpha": 2, f"{prefix}r": 4}
    path = file(arrays, {"lora_adapter_metadata": json.dumps(fields)})
    assert factor(path) == 0.5
    for bad in ("{", "[]", json.dumps({f"{prefix}r": 4})):
        refused(file(arrays, {"lora_adapter_metadata": bad}), "lora_adapter_metadata")


# ---- what is refused


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("hada_w1_a", "is a LoHa"),
        ("lokr_w1", "is a LoKr"),
        ("dora_scale", "is a DoRA"),
        ("lora_magnitude_vector", "is a DoRA"),
        ("lora_mid.weight", "in Tucker form"),
        ("diff", "whole weights"),
        ("diff_b", "whole weights"),
        ("w_norm", "change of norms"),
        ("oft_blocks", "is an OFT"),
        ("a1.weight", "is a GLoRA"),
        ("lora_B.bias", "LoRA with biases"),
        ("lora_embedding_A", "LoRA of embeddings"),
        ("string_to_param", "1 array that no LoRA has"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_name(file, role, message):
    refused(file(pair(QUERY, **{role: normal(2, 2)})), message)


def test_a_lora_of_another_base_is_refused_with_what_it_says_of_it(file):
    wide = {f"{kohya(QUERY)}.lora_down.weight": normal(2, 2048)}
    arrays = pair(QUERY) | wide
    refused(file(arrays), r"is for \(32, 2048\), here \(32, 32\)\): it is for another base$")
    said = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "x\n" * 99}
    refused(file(arrays, said), r"for another base \(sdxl_base_v1-0, 'x\\nx")
    xl = {n.replace(kohya(QUERY), "lora_te2_text_model_x"): v for n, v in pair(QUERY).items()}
    refused(file(xl), r"1 module that this model does not have .*another base \(SDXL, by its names")


def test_many_unknown_modules_are_counted(file):
    arrays = {
        name.replace("attn1", f"attn{n}"): v for n in range(3, 9) for name, v in pair(QUERY).items()
    }
    refused(file(arrays), r"6 modules that .*attn3_to_q, .*attn4_to_q, .* and 3 more\)")


def test_the_first_convolution_of_an_inpainting_model_is_another_shape(file):
    inpainting = dataclasses.replace(base().config.unet, in_channels=9, inpainting=True)
    config = dataclasses.replace(base().config, unet=inpainting)
    with pytest.raises(
        ValueError, match=r"lora_unet_conv_in is for \(32, 4, 3, 3\), here \(32, 9,"
    ):
        read(file(pair("conv_in")), leaves_of(leaf_shapes(config)))


DOWN, UP = "lora_down.weight", "lora_up.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({UP: normal(32, 3)}, r"shapes \(2, 32\) \(down\) and \(32, 3\) \(up\)"),
        ({DOWN: normal(0, 32), UP: normal(32, 0)}, r"shapes \(0, 32\)"),
        ({DOWN: normal(32)}, r"shapes \(32,\)"),
        ({DOWN: np.float32(1)}, r"shapes \(\)"),
        ({UP: normal(32, 2, 3, 3)}, r"\(32, 2, 3, 3\) \(up\)"),
        ({"alpha": normal(2)}, r"alpha of .* has shape \(2,\)"),
        ({"alpha": np.float32("nan")}, "alpha of .* is nan"),
        ({"alpha": np.float32("inf")}, "alpha of .* is inf"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(file, changes, message):
    refused(file(pair(QUERY, **changes)), message)


def test_arrays_that_are_missing_or_double_are_refused(file):
    arrays = pair(QUERY)
    refused(file({k: v for k, v in arrays.items() if "up" not in k}), "has no array up of")
    refused(file({f"{kohya(QUERY)}.alpha": np.float32(1)}), "is not a LoRA: it has 1 array")
    other = {
        f"unet.{QUERY}.lora_A.weight": normal(2, 32),
        f"unet.{QUERY}.lora_B.weight": normal(32, 2),
    }
    refused(file(arrays | other), "changes one weight twice, as .* and as ")
    other = {f"{kohya(QUERY)}.lora_A.weight": normal(2, 32)}
    refused(file(arrays | other), "has two arrays down of")


@pytest.mark.parametrize("role", [DOWN, UP])
def test_nan_is_refused_with_the_module(file, role):
    arrays = pair(QUERY)
    arrays[f"{kohya(QUERY)}.{role}"][1, 1] = np.nan
    tensors = with_deltas(base().tensors, deltas_of(find([(file(arrays), 0.5)]), leaves()))
    with pytest.raises(ValueError, match=rf"x\.safetensors: {kohya(QUERY)} has NaN or infinite"):
        dict(read_arrays(leaves(), tensors, None))


def test_sums_that_are_too_large_are_refused(file):
    tensors = with_deltas(base().tensors, deltas_of(find([(file(pair(QUERY)), 1e5)]), leaves()))
    with pytest.raises(ValueError, match="too large for float16 with the LoRAs added: use --dtype"):
        dict(read_arrays(leaves(), tensors, "float16"))


def test_other_files_are_no_loras(tmp_path):
    for path in (kinds.source("text_box"), loras.BASE, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="LoRA|arrays was expected|only hold arrays"):
            read(resolve_lora(path), leaves())
