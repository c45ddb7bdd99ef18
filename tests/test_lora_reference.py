"""Proof: LoRA files of every form, merged at conversion, give what the reference made of them.

Weights and outputs of diffusers' networks with the merge in float64, and its own loaders where
they read the form: `lora_expected.json` and `.npz`, which name the files, scales and arrays.
"""

import dataclasses
import functools
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reground_jax.cli import main
from reground_jax.convert import low_rank
from reground_jax.convert.conversion import convert, read_arrays
from reground_jax.convert.lora import deltas_of, find, read, with_deltas
from reground_jax.convert.lora_scaling import Scaling
from reground_jax.convert.sources import Tensors
from reground_jax.devices import compiler_options
from reground_jax.model import network, read_description, read_model
from reground_jax.networks.attention import attention_for
from reground_jax.networks.grounding.text import Grounding
from reground_jax.storage.checkpoint import CheckpointError, flatten, unflatten
from tests.fixtures import fixtures
from tests.loras import BASE, base, leaves
from tests.reference import relative_error

CASES = {
    case["key"]: case
    for case in json.loads((fixtures() / "lora_expected.json").read_text("utf-8"))["cases"]
}
REFUSED = sorted(path.name for path in (fixtures() / "lora_refused").iterdir())
NETWORKS = ("unet", "text_encoder")
OUTPUTS = ("sequential", "parallel", "text_hidden", "text_pooled")
# Shares of the largest value. LoRAs change outputs by 20 % and more; ours differ by 7e-6.
WEIGHT_TOLERANCE, TOLERANCE = 1e-6, 1e-5
ATTEND = attention_for("cpu")


@functools.cache
def expected() -> dict[str, np.ndarray]:
    with np.load(fixtures() / "lora_expected.npz") as file:
        return dict(file)


def arguments(key: str):
    """What `convert` takes for a case, or nothing for "base"."""
    case = CASES.get(key)
    return [] if case is None else [(fixtures() / case["file"], case["scale"])]


def merged(key: str):
    """The source's tensors with the LoRA of a case."""
    return with_deltas(base().tensors, deltas_of(find(arguments(key)), leaves()))


@pytest.mark.parametrize("key", CASES)
def test_merged_weights_equal_the_reference(key):
    weights = {
        f"{network}.{name}": tensor
        for network, named in merged(key).items()
        for name, tensor in named.items()
        if tensor.deltas
    }
    wanted = {name.replace(".text_model.", "."): v for name, v in CASES[key]["merged"].items()}
    assert weights.keys() == wanted.keys()
    for name, facts in wanted.items():
        weight = weights[name].read().astype(np.float64)
        largest = np.abs(weight).max()
        assert list(weight.shape) == facts["shape"]
        first = np.abs(weight.reshape(-1)[:3] - facts["first"]).max()
        assert first < WEIGHT_TOLERANCE * largest, name
        # Errors of single values add up like random steps.
        room = WEIGHT_TOLERANCE * np.sqrt(weight.size)
        assert abs(weight.sum() - facts["sum"]) < room * largest, name
        assert abs((weight**2).sum() - facts["squares"]) < room * largest**2, name


@functools.cache
def program():
    """All outputs of a model, compiled once for all cases."""
    graphs = {name: network(base().config, name)[0] for name in NETWORKS}

    def outputs(params, x, timesteps, context, boxes, phrases, masks, ids):
        unet = nnx.merge(graphs["unet"], params["unet"])
        tokens = unet.position_net(Grounding(boxes, phrases, masks), dtype=jnp.float32)
        found = {}
        for wiring in ("sequential", "parallel"):
            prepared = unet.prepare(context, tokens, timesteps, wiring=wiring)
            gate = jnp.float32(1)
            found[wiring] = unet(x, prepared, gate=gate, wiring=wiring, attend=ATTEND)
        encoding = nnx.merge(graphs["text_encoder"], params["text_encoder"])(ids)
        return found | {"text_hidden": encoding.hidden, "text_pooled": encoding.pooled}

    return jax.jit(outputs, compiler_options=compiler_options(jax.devices()))


def run(params) -> dict[str, np.ndarray]:
    """Outputs on the fixture's inputs, images in PyTorch's order of axes."""
    given = {k.removeprefix("in/"): v for k, v in expected().items() if k.startswith("in/")}
    given["x"] = np.moveaxis(given["x"], 1, -1)
    given["timesteps"] = given["timesteps"].astype(np.float32)
    found = program()({name: params[name] for name in NETWORKS}, **given)
    return {k: np.moveaxis(v, -1, 1) if v.ndim == 4 else v for k, v in found.items()}


def outputs(key: str, tensors: Tensors | None = None) -> dict[str, np.ndarray]:
    own = [leaf for leaf in leaves() if leaf.path.startswith(NETWORKS)]
    return run(unflatten(read_arrays(own, tensors or merged(key), None)))


def errors(found: dict[str, np.ndarray], key: str) -> dict[str, float]:
    place = "base" if key == "base" else f"out/{key}"
    return {name: relative_error(found[name], expected()[f"{place}/{name}"]) for name in OUTPUTS}


@pytest.mark.parametrize("key", ["base", *CASES])
def test_outputs_equal_the_reference(key):
    assert max(errors(outputs(key), key).values()) < TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_lora_for_the_model_is_refused_in_a_sentence(name):
    with pytest.raises(ValueError) as caught:
        read(fixtures() / "lora_refused" / name, leaves())
    message = str(caught.value)
    assert name in message and "\n" not in message
    kinds = {"dora": "is a DoRA", "loha": "is a LoHa", "lokr": "is a LoKr", "tucker": "lora_mid"}
    kinds |= {"full": "whole weights", "unknown": "does not have", "wrong": "of other shapes"}
    assert kinds.get(name.split(".")[0].split("_")[0], "") in message


# Mistakes that are easy to make, each of which a case must notice.


def noticed() -> bool:
    """Whether some case differs in an output."""
    return any(max(errors(outputs(key), key).values()) > 50 * TOLERANCE for key in CASES)


def test_alpha_left_out_would_be_noticed(monkeypatch):
    right = Scaling.factor
    monkeypatch.setattr(Scaling, "factor", lambda *arguments: right(*arguments) and 1.0)
    assert noticed()


def test_a_scale_that_counts_twice_would_be_noticed(monkeypatch):
    right = dataclasses.replace

    def twice(value, **changes):
        if "factor" in changes:
            changes["factor"] *= changes["factor"] / value.factor
        return right(value, **changes)

    monkeypatch.setattr(dataclasses, "replace", twice)
    assert noticed()


def test_a_transposed_product_would_be_noticed(monkeypatch):
    right = low_rank.Delta.array

    def turned(delta, shape):
        square = len(shape) == 2 and shape[0] == shape[1]
        return right(delta, shape).T if square else right(delta, shape)

    monkeypatch.setattr(low_rank.Delta, "array", turned)
    assert noticed()


def test_a_delta_in_the_wrong_part_of_a_packed_kernel_would_be_noticed():
    """As if q, k and v were added to in another order than they are packed."""
    key = next(iter(CASES))
    tensors = merged(key)
    for leaf in leaves():
        named = tensors[leaf.path.split("/")[0]]
        turned = (*leaf.sources[1:], leaf.sources[0])
        deltas = [named[name].deltas for name in turned]
        for name, other in zip(leaf.sources, deltas, strict=True):
            named[name] = dataclasses.replace(named[name], deltas=other)
    assert max(errors(outputs(key, tensors), key).values()) > 50 * TOLERANCE


# ---- whole conversions


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The base, converted, in a folder of its own."""
    folder = tmp_path_factory.mktemp("lora") / "base"
    convert(BASE, folder)
    return folder


@pytest.fixture(scope="module")
def two():
    """Two LoRAs that share modules."""
    names = [
        key
        for key in CASES
        if CASES[key]["merged"].keys() & CASES[next(iter(CASES))]["merged"].keys()
    ]
    return arguments(names[0]) + arguments(names[-1])


@pytest.fixture(scope="module")
def both(tmp_path_factory, two):
    """(The model directory of the base with two LoRAs, its info.)"""
    folder = tmp_path_factory.mktemp("both") / "model"
    return folder, convert(BASE, folder, loras=two)


def test_several_loras_add_and_are_recorded(both, two):
    folder, info = both
    tensors = base().tensors
    for one in two:  # one after the other, rounded in between
        deltas = deltas_of(find([one]), leaves())
        tensors = {
            network: {
                name: dataclasses.replace(
                    t, deltas=t.deltas + deltas.get(network, {}).get(name, ())
                )
                for name, t in named.items()
            }
            for network, named in tensors.items()
        }
    expected = dict(read_arrays(leaves(), tensors, None))
    ours = dict(flatten(read_model(folder).params))
    assert all((ours[name] == array).all() for name, array in expected.items())
    files = [lora.path for lora in find(two)]
    assert info["loras"] == [
        {
            "path": str(path),
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "scales": [scale, scale],
        }
        for (path, scale), file in zip(two, files, strict=True)
    ]


def test_a_model_directory_takes_loras_and_shares_what_they_leave(
    tmp_path, model, both, two, capsys
):
    options = [text for path, scale in two for text in ("--lora", f"{path}@{scale}")]
    new = tmp_path / "new"
    assert main(["convert", str(model), str(new), *options]) == 0
    description, direct = read_description(new), both[1]
    # Bit for bit what the conversion with LoRAs gives: names, dtypes, shapes and contents.
    assert description.info["checksum"] == direct["checksum"]
    assert read_model(new).info["loras"] == direct["loras"]
    assert description.base is not None and (new / description.base).samefile(model)
    size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
    whole = sum(path.stat().st_size for path in both[0].rglob("*") if path.is_file())
    assert size < 0.6 * whole
    shown = capsys.readouterr().out
    assert f"{two[0][0]} at {two[0][1]:g} (SHA-256 " in shown and description.base in shown
    (tmp_path / "deeper").mkdir()
    shutil.move(new, tmp_path / "deeper" / "new")
    with pytest.raises(CheckpointError, match="differ from its base's, and .* moved, move it back"):
        read_model(tmp_path / "deeper" / "new")


def test_a_model_on_a_model_adds_to_its_loras(tmp_path, model, two):
    """In another dtype, so that it stands alone; under a link, which a relative path must heed."""
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    first, second = tmp_path / "link/first", tmp_path / "second"
    convert(model, first, loras=two[:1])
    info = convert(first, second, loras=[(two[1][0], (0.25, -1))], dtype="bfloat16")
    assert [record["scales"] for record in info["loras"]] == [[two[0][1]] * 2, [0.25, -1.0]]
    assert info["source"] == str(BASE) and info["dtype"] == "bfloat16"
    shutil.rmtree(tmp_path / "far")
    assert read_model(second).info["loras"] == info["loras"]


def test_a_base_that_was_changed_is_noticed(tmp_path, model, two):
    other = tmp_path / "base"
    shutil.copytree(model, other)
    convert(other, tmp_path / "new", loras=two[:1])
    shutil.rmtree(other)
    convert(BASE, other, dtype="float16")
    with pytest.raises(CheckpointError, match="its arrays are damaged .*base was changed"):
        read_model(tmp_path / "new")
