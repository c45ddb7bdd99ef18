"""`batch` with an object store, in memory; sampler stubbed."""

import hashlib

import pytest

from reground_jax.cli import main
from tests.batch_cases import files, generate, metadata, refusal

pytestmark = pytest.mark.usefixtures("stub")


@pytest.mark.parametrize("form", ["imagefolder", "webdataset"])
def test_an_object_store_gets_the_same_output_and_resumes(ten, tmp_path, memory, stub, form):
    generate(ten, tmp_path / "out", "--format", form)
    assert generate(ten, "memory://bucket/out", "--format", form) == 0
    there = {
        path.removeprefix("/bucket/out/"): hashlib.sha256(memory.cat_file(path)).hexdigest()
        for path in memory.find("/bucket/out")
        if path.split("/")[3] in ("images", "shards")
    }
    assert there == files(tmp_path / "out")
    assert main(["batch-verify", "memory://bucket/out"]) == 0
    lost = "images/000000001" if form == "imagefolder" else "shards/000000001.tar"
    memory.rm(f"/bucket/out/{lost}", recursive=True)
    assert main(["batch-verify", "memory://bucket/out"]) == 1
    assert generate(ten, "memory://bucket/out", "--format", form) == 0
    assert main(["batch-verify", "memory://bucket/out"]) == 0
    assert not memory.find("/bucket/out/locks")  # leases are released


def test_the_input_may_be_in_an_object_store(ten, tmp_path, memory):
    memory.pipe_file("/bucket/in.jsonl", ten.read_bytes())
    assert generate("memory://bucket/in.jsonl", tmp_path / "out") == 0
    assert len(metadata(tmp_path / "out")) == 10


def test_a_store_without_its_package_says_what_to_install(ten, tmp_path, capsys):
    assert "cannot use nonsense://out" in refusal(capsys, ten, "nonsense://out")
