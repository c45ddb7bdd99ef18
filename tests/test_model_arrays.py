"""Damaged or hostile folders of arrays; what the checksums of arrays detect; NaN."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
import tensorstore

from reground_jax import model as models
from reground_jax.cli import main
from reground_jax.model import (
    nonfinite_arrays,
    read_description,
    read_model,
    write_model,
)
from reground_jax.storage.checkpoint import CheckpointError
from reground_jax.storage.facts import word_sum
from tests.model_directories import ARRAYS, GATE, TOKENIZER, edit, refused, rewrite
from tests.models import TINY


def some_file(directory: Path, name: str) -> Path:
    return next(path for path in (directory / "arrays").rglob(name) if path.is_file())


def _pipe(directory):
    path = some_file(directory, "manifest.ocdbt")
    path.unlink()
    os.mkfifo(path)


def _device(directory):
    path = some_file(directory, "_METADATA")
    path.unlink()
    path.symlink_to("/dev/zero")


def _dangling(directory):
    path = some_file(directory, "_METADATA")
    path.unlink()
    path.symlink_to("nowhere")


def _linked_folder(directory):
    """A link to a folder outside, which could contain anything."""
    state = directory / "arrays" / "000" / "state"
    shutil.move(state, directory.parent / "state")
    state.symlink_to(directory.parent / "state")


def _missing_file(directory):
    shutil.rmtree(directory / "arrays" / "000" / "state" / "d", ignore_errors=True)
    for path in (directory / "arrays").rglob("d/*"):
        path.unlink()


def _missing_metadata(directory):
    some_file(directory, "_METADATA").unlink()


def _emptied(directory):
    for path in (directory / "arrays").rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def _no_arrays(directory):
    shutil.rmtree(directory / "arrays")


def _more_groups(directory):
    edit(directory, lambda content: content.update(groups=3))


def _fewer_groups(directory):
    edit(directory, lambda content: content.update(groups=0))


def _integers(directory):
    rewrite(directory, {name: array.astype(np.int8) for name, array in ARRAYS.items()})


def _complex(directory):
    rewrite(directory, {name: array.astype(np.complex64) for name, array in ARRAYS.items()})


def _dots(directory):
    rewrite(directory, ARRAYS | {"../../escaped": np.zeros(3, np.float32)})


def _slashes(directory):
    rewrite(directory, ARRAYS | {"/etc/unet": np.zeros(3, np.float32)})


def _gate_of_three(directory):
    rewrite(directory, ARRAYS | {GATE: np.zeros(3, np.float32)})


def _one_less(directory):
    rewrite(directory, {name: array for name, array in ARRAYS.items() if name != GATE})


def _no_dict(directory):
    shutil.rmtree(directory / "arrays")
    ocp.save(str(directory / "arrays" / "000"), [np.zeros(3, np.float32)])


def _nested(directory):
    shutil.rmtree(directory / "arrays")
    ocp.save(str(directory / "arrays" / "000"), {"unet": {"x": np.zeros(3, np.float32)}})


def _another_value(directory):
    rewrite(directory, ARRAYS | {GATE: np.asarray(ARRAYS[GATE] + 1)})


def _words_moved(directory):
    name = "unet/conv_in/kernel"
    moved = np.roll(ARRAYS[name].reshape(-1), 2)  # by a word of 64 bits
    rewrite(directory, ARRAYS | {name: moved.reshape(ARRAYS[name].shape)})


DAMAGE = {
    _pipe: "manifest.ocdbt is neither a file nor a folder",
    _device: "_METADATA is neither a file nor a folder",
    _dangling: "_METADATA cannot be read: No such file",
    _linked_folder: "state is neither a file nor a folder",
    _missing_file: "arrays/000 is missing or damaged",
    _missing_metadata: "arrays/000 is missing or damaged",
    _emptied: "arrays/000 is missing or damaged",
    _no_arrays: "arrays/000 is missing or damaged",
    _more_groups: "arrays/001 is missing or damaged",
    _fewer_groups: r": \d+ missing arrays",
    _integers: "is int8, expected float16 or",
    _complex: "is complex64, expected float16 or",
    _dots: r"array ../../escaped has shape \(3,\), but its config.json requires None",
    _slashes: "array /etc/unet has shape",
    _gate_of_three: r"alpha_attn has shape \(3,\), but its config.json requires \(\)",
    _one_less: f": 1 missing arrays, such as {GATE}",
    _no_dict: "arrays/000 is missing or damaged|does not hold named arrays",
    _nested: "arrays/000 is missing or damaged|does not hold named arrays",
    _another_value: "its arrays are damaged",
}


@pytest.mark.parametrize(
    ("damage", "message"), DAMAGE.items(), ids=[damage.__name__ for damage in DAMAGE]
)
def test_a_tampered_folder_of_arrays_is_one_sentence(damage, message, directory):
    damage(directory)
    refused(directory, message)
    assert not (directory.parent / "escaped").exists()


def test_an_array_that_claims_to_be_huge_is_refused_before_it_is_read(directory, monkeypatch):
    """A sparse one costs its writer nothing, but reading it ends with std::bad_alloc."""
    place = f"file://{directory}/arrays/000/state/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": place}).result()
    key = "unet/conv_in/bias/zarr.json"
    content = json.loads(store.read(key).result().value)
    content["shape"] = [10**12]
    store.write(key, json.dumps(content).encode()).result()

    def loaded(*_: object) -> None:
        raise AssertionError("the array is read")

    monkeypatch.setattr(ocp, "load", loaded)
    refused(directory, r"array unet/conv_in/bias has shape \(1000000000000,\)")


# ---- checksums of arrays


def test_swapped_words_have_equal_sums_and_are_found_by_a_check(directory, capsys):
    """The quick sums miss this: they detect damage, not tampering."""
    before = read_description(directory).info
    _words_moved(directory)
    read_model(directory)
    with pytest.raises(CheckpointError, match="its arrays are damaged"):
        read_model(directory, check=True)
    assert main(["info", str(directory), "--check"]) == 2
    assert "its arrays are damaged" in capsys.readouterr().err
    edit(directory, lambda content: content["info"].pop("sums"))  # as earlier versions wrote
    refused(directory, "its arrays are damaged")
    assert before["sums"] != before["checksum"]


def test_every_flipped_bit_changes_the_sum():
    array = np.random.default_rng(0).standard_normal(5).astype(np.float16)  # 10 bytes, 2 left over
    for byte in range(array.nbytes):
        for bit in range(8):
            content = bytearray(array.tobytes())
            content[byte] ^= 1 << bit
            flipped = np.frombuffer(content, np.float16)
            assert word_sum("x", flipped) != word_sum("x", array)


def test_info_checks_the_arrays_only_when_asked(directory, capsys, monkeypatch):
    assert main(["info", str(directory), "--check"]) == 0
    assert "checked       every array is as it was written" in capsys.readouterr().out

    def read(*_: object, **__: object) -> None:
        raise AssertionError("arrays are read")

    monkeypatch.setattr(models, "load_arrays", read)
    assert main(["info", str(directory)]) == 0
    assert read_description(directory).checksum in capsys.readouterr().out


# ---- NaN


def test_arrays_with_nan_are_named(tmp_path, capsys):
    bad = {name: array.copy() for name, array in ARRAYS.items()}
    bad["unet/conv_in/kernel"][0, 0, 0, 0] = np.nan
    bad["vae/decoder/conv_in/bias"][0] = np.inf
    names = ["unet/conv_in/kernel", "vae/decoder/conv_in/bias"]
    info = write_model(tmp_path / "m", TINY, bad.items(), TOKENIZER, {})
    assert sorted(info["nonfinite"]) == names
    assert sorted(nonfinite_arrays(read_model(tmp_path / "m").params)) == names
    assert main(["info", str(tmp_path / "m")]) == 0
    assert "WARNING       NaN or infinity in unet/conv_in/kernel" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "m"), "--check"]) == 1
    assert "checked       NaN or infinity in" in capsys.readouterr().out


def test_finite_arrays_are_not_mentioned(unchanged, capsys):
    assert "nonfinite" not in read_description(unchanged).info
    assert nonfinite_arrays(read_model(unchanged).params) == []
    assert main(["info", str(unchanged)]) == 0
    assert "WARNING" not in capsys.readouterr().out
