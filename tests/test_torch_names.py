"""What legitimate checkpoints hold besides arrays is read as inert data, by exact names.

torch, NumPy and pickle write the files, and are the reference.
"""

import argparse
import collections
import pickle
import pickletools
import random
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from reground_jax.convert.pickle_data import MOST_INSTRUCTIONS, Inert, Name, Reader, RefusedPickle
from reground_jax.convert.pickles import load_torch
from reground_jax.convert.sources import open_tensors
from reground_jax.convert.torch_names import CALLBACKS, LIGHTNING, known
from tests.hostile.parts import name, program, tensor, torch_zip, value

LIGHTNING_CASE = Path(__file__).parent / "data" / "cases" / "lightning-ckpt" / "lightning.ckpt"
MODEL_CHECKPOINT = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


def test_a_lightning_checkpoint_gives_its_arrays():
    tensors = open_tensors(LIGHTNING_CASE)
    assert tensors.shapes() == {"a": (2, 3), "b": (4,)}
    np.testing.assert_array_equal(tensors.read("a"), np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(tensors.read("b"), np.ones(4))


def test_a_class_as_a_key_stays_a_name():
    content = load_torch(LIGHTNING_CASE)
    assert content["global_step"] == 470000
    ((key, state),) = content["callbacks"].items()
    assert isinstance(key, Name) and key.name == MODEL_CHECKPOINT
    assert state == {"monitor": "val/loss", "best_model_path": ""}


@pytest.mark.parametrize("package", LIGHTNING)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_callbacks_of_both_packages_are_names(tmp_path, package, callback):
    module, _, attribute = f"{package}.callbacks.{callback}".rpartition(".")
    pickled = program(
        {"state_dict": {"a": tensor()}, "callbacks": b"}" + name(module, attribute) + b"}s"}
    )
    (tmp_path / "x.ckpt").write_bytes(torch_zip(pickled))
    assert open_tensors(tmp_path / "x.ckpt").shape("a") == (2, 3)


HONEST = {
    "loss": np.float64(0.25),
    "step": np.int64(3),
    "flag": np.bool_(True),
    "array": np.arange(6.0).reshape(2, 3),
    "columns": np.asfortranarray(np.ones((2, 3), np.float32)),
    "texts": np.array(["a", "b"]),
    "dtype": np.dtype("float16"),
    "torch_dtype": torch.float32,
    "device": torch.device("cpu"),
    "size": torch.Size([2, 3]),
    "path": Path("a/b"),
    "pure_path": PurePosixPath("a/b"),
    "namespace": argparse.Namespace(lr=1e-4),
    "milestones": collections.Counter([30, 60]),
    "factory": collections.defaultdict(list, {"a": [1]}),
    "ordered": collections.OrderedDict(a=1),
    "set": {1, 2},
    "frozen": frozenset({1}),
    "bytes": b"abc",
    "no_bytes": b"",
    "bytearray": bytearray(b"abc"),
    "class": dict,
    "parameters": torch.nn.ParameterDict({"x": torch.zeros(2)}),
    "parameter_list": torch.nn.ParameterList([torch.zeros(2)]),
    "random_state": np.random.default_rng(0).bit_generator.state,
    "old_random_state": np.random.RandomState(0).get_state(),
    "torch_random_state": torch.get_rng_state(),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_trainers_put_beside_the_arrays_is_inert(tmp_path, protocol):
    content = HONEST | {"state_dict": {"a": torch.arange(6.0)}}
    torch.save(content, tmp_path / "x.ckpt", pickle_protocol=protocol)
    np.testing.assert_array_equal(open_tensors(tmp_path / "x.ckpt").read("a"), np.arange(6.0))
    loaded = load_torch(tmp_path / "x.ckpt")
    assert list(loaded) == list(content)
    assert all(isinstance(loaded[key], Inert) for key in ("loss", "array", "path", "namespace"))
    assert loaded["namespace"].state == {"lr": 1e-4}
    assert loaded["factory"] == {"a": [1]} and loaded["ordered"] == {"a": 1}
    assert loaded["set"] == [1, 2] and loaded["frozen"] == [1]


def test_the_names_of_numpy_1_are_known_too():
    for package in ("numpy.core", "numpy._core"):
        for attribute in ("scalar", "_reconstruct"):
            assert known(f"{package}.multiarray", attribute) is not None
    assert known("numpy.core.multiarray", "fromfile") is None


@pytest.mark.parametrize("protocol", [2, 5])
def test_parameters_and_tensors_with_attributes_are_arrays(tmp_path, protocol):
    plain, parameter = torch.arange(3.0), torch.nn.Parameter(torch.arange(4.0))
    plain.note, parameter.note = "a", "b"
    torch.save({"a": plain, "b": parameter}, tmp_path / "x.pt", pickle_protocol=protocol)
    tensors = open_tensors(tmp_path / "x.pt")
    np.testing.assert_array_equal(tensors.read("a"), np.arange(3.0))
    np.testing.assert_array_equal(tensors.read("b"), np.arange(4.0))


def test_an_inert_thing_among_the_arrays_is_named(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2), "b": np.float64(3)}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"'b' is a numpy\._?core\.multiarray\.scalar, but a"):
        open_tensors(tmp_path / "x.ckpt")


@pytest.mark.parametrize("module", ["numpy", "torch", "pytorch_lightning", "pathlib", "os"])
def test_other_names_of_the_same_packages_are_refused(tmp_path, module):
    pickled = program({"state_dict": {"a": tensor()}, "x": name(module, "load")})
    (tmp_path / "x.ckpt").write_bytes(torch_zip(pickled))
    with pytest.raises(RefusedPickle, match=rf"x\.ckpt refers to {module}\.load, which could run"):
        open_tensors(tmp_path / "x.ckpt")


def test_a_callback_may_be_named_and_nothing_more(tmp_path):
    module, _, attribute = MODEL_CHECKPOINT.rpartition(".")
    for use, says in ((value(()) + b"R", "calls"), (value(()) + b"\x81", "creates an instance of")):
        pickled = program({"a": tensor(), "x": name(module, attribute) + use})
        (tmp_path / "x.ckpt").write_bytes(torch_zip(pickled))
        with pytest.raises(RefusedPickle, match=f"x.ckpt {says} {MODEL_CHECKPOINT}, which could"):
            open_tensors(tmp_path / "x.ckpt")


def _refuse(*asked):
    raise AssertionError(f"plain data asks for {asked}")


def _random_value(source: random.Random, depth: int):
    kind = source.randrange(12 if depth else 8)
    if kind < 8:
        number = source.choice([0, 1, -1, 255, 256, 65535, -(2**31), 2**31, 2**64, -(2**70)])
        text = source.choice(["", "a", "é", "語", "\ud83d", "x" * 300])
        leaves = None, True, False, number, source.random(), text, text.encode("utf-8", "replace")
        return (*leaves, ())[kind]
    parts = [_random_value(source, depth - 1) for _ in range(source.randrange(6))]
    if kind < 10:
        return tuple(parts) if kind == 8 else parts
    return {source.choice(["k", 1, None, 2.5, b"k"]): part for part in parts}


@pytest.mark.parametrize("protocol", [3, 4, 5])  # 2 has no instruction for bytes
def test_plain_data_reads_as_python_reads_it(protocol):
    source = random.Random(protocol)
    for _ in range(300):
        made = _random_value(source, 4)
        data = pickle.dumps(made, protocol)
        assert Reader(Path("x"), data, _refuse, _refuse).load() == pickle.loads(data)


def test_the_largest_honest_checkpoint_takes_a_small_part_of_the_instructions_allowed(tmp_path):
    """A full Stable Diffusion training state has ten times as many arrays as this one.

    It has 2,600 arrays, and Adam's state of 1,700.
    """
    name = "model.diffusion_model.input_blocks.{}.1.transformer_blocks.0.attn1.to_q.weight"
    weights = {name.format(n): torch.zeros(1) for n in range(260)}
    adam = {
        n: {"step": torch.zeros(1), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
        for n in range(170)
    }
    optimizer = {"state": adam, "param_groups": [{"params": list(range(170))}]}
    torch.save({"state_dict": weights, "optimizer_states": [optimizer]}, tmp_path / "x.ckpt")
    assert len(open_tensors(tmp_path / "x.ckpt")) == 260
    with zipfile.ZipFile(tmp_path / "x.ckpt") as archive:
        data = archive.read("x/data.pkl")
    assert sum(1 for _ in pickletools.genops(data)) < MOST_INSTRUCTIONS / 10 / 8
