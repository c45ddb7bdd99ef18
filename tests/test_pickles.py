"""Torch pickles read without torch; torch writes them and is the reference."""

import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from reground_jax.convert.pickle_data import BadPickle, Inert, Name, RefusedPickle
from reground_jax.convert.pickles import load_torch, plain
from reground_jax.convert.stored import StoredArray
from reground_jax.convert.zips import BadZip

ORIGINAL = Path(__file__).parent / "data"


def write_zip(path, content, compression=zipfile.ZIP_STORED):
    """A torch-like zip around one pickle, written without torch."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("evil/data.pkl", pickle.dumps(content, protocol=2))
    return path


def as_torch(array):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array)


class Calls:
    """Unpickling it calls a function, as in a malicious checkpoint."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def test_a_pickle_that_runs_a_command_is_refused_by_name_and_nothing_runs(tmp_path):
    trace = tmp_path / "it-ran"
    path = write_zip(tmp_path / "evil.bin", {"weight": Calls(os.system, f"touch {trace}")})
    with pytest.raises(RefusedPickle, match=rf"evil\.bin refers to {os.system.__module__}\.system"):
        load_torch(path)
    assert not trace.exists()


@pytest.mark.parametrize("function", [eval, getattr, __import__, open, torch.load, np.load])
def test_functions_of_allowed_and_other_modules_are_refused(tmp_path, function):
    path = write_zip(tmp_path / "evil.bin", Calls(function, "1"))
    with pytest.raises(RefusedPickle, match=rf"\.{function.__name__}, which could run code"):
        load_torch(path)


def test_a_dotted_name_does_not_reach_into_an_allowed_module(tmp_path):
    module, name = b"collections", b"abc.sys.modules"
    code = b"\x80\x04\x8c%c%b\x8c%c%b\x93." % (len(module), module, len(name), name)  # STACK_GLOBAL
    with zipfile.ZipFile(tmp_path / "evil.bin", "w") as archive:
        archive.writestr("evil/data.pkl", code)
    with pytest.raises(RefusedPickle, match=r"collections\.abc\.sys\.modules"):
        load_torch(tmp_path / "evil.bin")


def test_a_pickle_cannot_point_a_tensor_at_another_file(tmp_path):
    class Moved:
        """A tensor whose BUILD state would overwrite the attributes of its stand-in."""

        def __reduce__(self):
            return *torch.zeros(1).__reduce_ex__(2), {"path": "/etc/passwd"}

    torch.save({"weight": Moved()}, tmp_path / "moved.bin")
    with pytest.raises(BadPickle, match=r"moved\.bin sets the state of StoredArray"):
        load_torch(tmp_path / "moved.bin")


def test_objects_of_foreign_classes_are_inert_and_names_stay_names():
    config = load_torch(ORIGINAL / "original_inpaint_tiny.bin")["config_dict"]
    node = config["_content"]["model"]
    assert isinstance(node, Inert) and node.name == "omegaconf.dictconfig.DictConfig"
    assert isinstance(config["_metadata"].state["ref_type"], Name)


@pytest.mark.parametrize(
    "dtype",
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split(),
)
def test_every_dtype_reads_as_torch_wrote_it(tmp_path, dtype):
    expected = torch.arange(-6, 6).reshape(3, 4).to(getattr(torch, dtype))
    torch.save({"weight": expected}, tmp_path / "x.bin")
    array = load_torch(tmp_path / "x.bin")["weight"]
    assert isinstance(array, StoredArray) and array.shape == (3, 4) and array.dtype.name == dtype
    assert torch.equal(as_torch(array.read()), expected)


def test_views_of_one_storage_read_as_torch_reads_them(tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {
        "whole": base,
        "tail": base[1:],
        "transposed": base.transpose(0, 2),
        "column": base[:, 1, ::2],
        "expanded": base[0, 0, :1].expand(4, 5),
        "scalar": base[2, 3, 4],
        "empty": base[:0],
        "channels_last": torch.arange(120.0)
        .reshape(2, 3, 4, 5)
        .to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base[0].T),
    }
    torch.save(views, tmp_path / "views.bin")
    loaded = load_torch(tmp_path / "views.bin")
    assert list(loaded) == list(views)
    for name, expected in views.items():
        read = loaded[name].read()
        assert read.flags.c_contiguous
        assert read.shape == tuple(expected.shape)
        np.testing.assert_array_equal(read, expected.detach().numpy(), err_msg=name)
    # 60 float32 of one storage, and the tensor of 120
    assert (tmp_path / "views.bin").stat().st_size < 60 * 4 + 120 * 4 + 6000


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    class TooFar:
        def __reduce__(self):
            rebuild, (storage, _, _, _, *rest) = torch.zeros(6).__reduce_ex__(2)
            return rebuild, (storage, 1, (2, 3), (3, 1), *rest)  # elements 1 to 6 of 0 to 5

    torch.save(TooFar(), tmp_path / "far.bin")
    with pytest.raises(BadPickle, match=r"reaches beyond its storage of 6 elements"):
        load_torch(tmp_path / "far.bin")


def test_loading_reads_no_array():
    path = ORIGINAL / "original_text_box_tiny.bin"
    tracemalloc.start()
    loaded = load_torch(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(loaded["model"]) == 964
    # 165 kB of pickle and 2.4k handles and zip entries at about 1 kB; the arrays are 20 MB
    assert peak < 5e6


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.9999])
def test_a_truncated_zip_is_one_clear_sentence(tmp_path, kept):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "x.bin")
    content = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(BadZip, match=r"cut\.bin is truncated: .* download it again"):
        load_torch(tmp_path / "cut.bin")


def test_a_file_cut_after_loading_is_found_when_read(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "x.bin")
    array = load_torch(tmp_path / "x.bin")["weight"]
    os.truncate(tmp_path / "x.bin", array.offset + 40)
    with pytest.raises(ValueError, match="needs 4000 bytes .* only 40 are left"):
        array.read()


def test_a_storage_shorter_than_the_pickle_says_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "x.bin")
    with (
        zipfile.ZipFile(tmp_path / "x.bin") as old,
        zipfile.ZipFile(tmp_path / "y.bin", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name)[: 400 if name.endswith("data/0") else None])
    with pytest.raises(BadPickle, match="x/data/0 needs 4000 bytes, found 400"):
        load_torch(tmp_path / "y.bin")


def test_a_compressed_zip_says_how_to_repack_it(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "x.bin")
    with (
        zipfile.ZipFile(tmp_path / "x.bin") as old,
        zipfile.ZipFile(tmp_path / "y.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(BadZip, match=r"x/\S+ is compressed .* `zip -0"):
        load_torch(tmp_path / "y.bin")


def write_old(path, content):
    """What torch wrote before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def test_the_old_form_without_a_zip_is_read(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        "view": base.t()[1:3],
        "same": base,
        "half": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "steps": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "empty": torch.zeros(0, 3),
    } | torch.nn.BatchNorm1d(3).state_dict()
    loaded = load_torch(write_old(tmp_path / "old.pth", content))
    assert list(loaded) == list(content)
    for name, tensor in content.items():
        found = loaded[name].read()
        expected = tensor.detach().float().numpy()
        np.testing.assert_array_equal(found.astype(np.float32), expected, name)
        assert str(found.dtype) == str(tensor.dtype).removeprefix("torch.")
    state = torch.nn.Linear(2, 3).state_dict()
    loaded = load_torch(write_old(tmp_path / "state.pth", state))
    np.testing.assert_array_equal(loaded["weight"].read(), state["weight"].numpy())


def test_the_old_form_runs_nothing(tmp_path):
    trace = tmp_path / "it-ran"
    path = write_old(tmp_path / "evil.pth", {"w": Calls(os.system, f"touch {trace}")})
    with pytest.raises(RefusedPickle, match=rf"evil\.pth refers to {os.system.__module__}\.system"):
        load_torch(path)
    assert not trace.exists()


def test_a_damaged_file_of_the_old_form_is_one_clear_sentence(tmp_path):
    path = write_old(tmp_path / "old.pth", {"a": torch.ones(3), "b": torch.zeros(5)})
    whole = path.read_bytes()
    fine = {name: load_torch(path)[name].read() for name in "ab"}
    messages = set()
    for at in range(15, len(whole)):  # every length beyond the magic number
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match=r"old\.pth") as caught:
            for array in load_torch(path).values():
                array.read()
        assert "\n" not in str(caught.value)
        messages.add(str(caught.value).split(": ")[-1])
    assert any("copy or download it again" in message for message in messages)
    for old, new, says in (
        (b"M\xe9\x03.", b"M\xea\x03.", "version 1002 of torch's old form"),
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89", "big-endian"),
        ((3).to_bytes(8, "little"), (4).to_bytes(8, "little"), "should have 3 elements"),
        (b"K\x03N", b"K\x04N", "should have 4 elements"),
        (b"K\x05N", b"J\xff\xff\xff\x7fN", "should have 2147483647 elements"),
    ):
        assert whole.count(old) == 1, old
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(BadPickle, match=says):
            load_torch(path)
    path.write_bytes(whole)
    assert {name: list(a) for name, a in fine.items()} == {"a": [1] * 3, "b": [0] * 5}


def test_a_damaged_pickle_is_one_clear_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}q\x00(X\x05\x00")
    with pytest.raises(BadPickle, match=r"x\.bin: its pickle is damaged"):
        load_torch(tmp_path / "x.bin")


def test_omegaconf_nodes_become_plain_values():
    loaded = load_torch(ORIGINAL / "original_text_box_tiny.bin")
    config = plain(loaded["config_dict"])
    assert sorted(config) == [
        "autoencoder",
        "diffusion",
        "grounding_tokenizer_input",
        "model",
        "text_encoder",
    ]
    assert config["diffusion"]["params"] == {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
    }
    assert config["model"]["params"]["attention_resolutions"] == [1, 2, 4]
    assert config["model"]["params"]["use_checkpoint"] is False


def test_an_inert_object_of_no_known_shape_is_an_error():
    node = load_torch(ORIGINAL / "original_text_box_tiny.bin")["config_dict"]["_metadata"]
    with pytest.raises(ValueError, match="ContainerMetadata with neither _content nor _val"):
        plain({"x": node})
