"""Where converted models and compiled programs are kept, and what works without such a place."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import safetensors.torch
import torch

from reground_jax import Pipeline
from reground_jax.basics.home import cache_folder, expand_home, writable_cache
from reground_jax.cli import build_parser
from reground_jax.cli.options import made
from reground_jax.cli.sampling import Setup, keep_programs, load
from reground_jax.convert import locate
from tests import reference

UNWRITABLE = "/proc/nowhere"  # nobody, not even root, can make a folder in /proc
WAY_OUT = r"--cache DIR \(in Python, cache=\) or the environment variable XDG_CACHE_HOME"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    reference.write_diffusers(folder, "small")
    return folder


@pytest.fixture
def programs():
    """JAX's compilation cache with its default settings; restored afterwards."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def no_home(monkeypatch):
    """A container that runs as a user id without a passwd entry."""

    def nobody(_):
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)


# ---- one function decides where


def test_an_option_comes_before_xdg_cache_home_and_that_before_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/me/.cache/reground-jax")
    for ignored in ("", "relative"):  # as the XDG specification requires
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == Path("/home/me/.cache/reground-jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/reground-jax")
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder("~/here") == Path("/home/me/here")
    monkeypatch.chdir(tmp_path)
    assert cache_folder("here") == tmp_path / "here"


def test_without_a_home_the_sentence_says_how_to_have_a_cache(no_home):
    with pytest.raises(ValueError, match=f"there is no home folder .*{WAY_OUT}"):
        cache_folder()
    with pytest.raises(ValueError, match="~/model: no home folder was found; use the full"):
        expand_home("~/model")
    assert cache_folder("/somewhere") == Path("/somewhere")


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", UNWRITABLE)
    with pytest.raises(OSError, match=f"No such file or directory: .*{WAY_OUT}") as caught:
        writable_cache()
    assert caught.value.filename == f"{UNWRITABLE}/.cache/reground-jax"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(OSError, match="Permission denied: the cache must be writable"):
        writable_cache(tmp_path)


# ---- models


def test_a_pipeline_is_converted_into_the_cache_that_is_named(tmp_path, folder, no_home):
    with pytest.raises(ValueError, match=WAY_OUT):
        Pipeline.load(folder)
    cache = tmp_path / "cache"
    pipe = Pipeline.load(folder, cache=cache)
    (directory,) = cache.glob("model-*")
    assert Pipeline.load(directory).info == pipe.info  # a converted model needs no home
    with pytest.MonkeyPatch.context() as patch:  # nor a writable cache, once it exists
        patch.setattr(locate, "writable_cache", pytest.fail)
        assert locate.model_directory(folder, cache=cache) == directory


def test_every_command_that_loads_a_model_takes_the_option():
    for command in ("generate", "compare", "batch", "evaluate", "compile", "bench"):
        words = [command, "x"] if command in ("generate", "compare", "batch") else [command]
        words += ["--out", "y"] if command == "batch" else []
        assert made(Setup, build_parser().parse_args([*words, "--cache", "/d"])).cache == "/d"
        assert made(Setup, build_parser().parse_args(words)).cache is None


# ---- compiled programs


def test_programs_are_kept_in_the_cache_that_is_named(tmp_path, programs, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    keep_programs()
    assert programs.jax_compilation_cache_dir == str(tmp_path / "xdg" / "reground-jax" / "xla")
    keep_programs(str(tmp_path / "option"))
    assert programs.jax_compilation_cache_dir == str(tmp_path / "option" / "xla")
    keep_programs()  # as if JAX_COMPILATION_CACHE_DIR had named it
    assert programs.jax_compilation_cache_dir == str(tmp_path / "option" / "xla")


def test_without_a_home_no_programs_are_kept_and_a_warning_says_so(programs, no_home, monkeypatch):
    monkeypatch.setattr(Pipeline, "load", lambda directory, **_: directory)
    with pytest.warns(UserWarning, match=f"programs are not kept: there is no home.*{WAY_OUT}"):
        assert load(Path("model"), "float32", Setup()) == Path("model")
    assert not programs.jax_enable_compilation_cache
    with pytest.raises(OSError, match=WAY_OUT):  # but an explicit choice must work
        load(Path("model"), "float32", Setup(cache=f"{UNWRITABLE}/cache"))
    load(Path("model"), "float32", Setup(no_cache=True))  # no warning


# ---- separate processes, since the environment is read at startup

NO_HOME = """
import os, pwd, sys
for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
    os.environ.pop(name, None)
def nobody(*_):
    raise KeyError("no such user")
pwd.getpwuid = nobody
from reground_jax.cli import main
from reground_jax.convert.sources import resolve
assert main(["info", "emoji"]) == 0
try:
    resolve("owner/name")
except ValueError as error:
    print(error, file=sys.stderr)
assert not os.path.exists("~")
"""
FROM_THE_HUB = """
from reground_jax.convert.sources import resolve
print(resolve("owner/name").path)
"""


def run(code: str, place: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=os.environ | environment, timeout=300,
        capture_output=True, text=True,
    )  # fmt: skip


def test_without_a_home_built_in_models_work_and_the_hub_says_what_to_set(tmp_path):
    done = run(NO_HOME, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "source        trained by reground_jax.training" in done.stdout
    assert "'owner/name' cannot be downloaded into the Hub's cache" in done.stderr
    assert "choose another folder with the environment variable HF_HOME" in done.stderr


def test_downloads_of_the_hub_are_kept_where_hf_home_says(tmp_path):
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.fuser.alpha_attn"
    safetensors.torch.save_file({name: torch.zeros(1)}, snapshot / "adapter.safetensors")
    done = run(FROM_THE_HUB, tmp_path, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.stdout.strip() == str(snapshot / "adapter.safetensors"), done.stderr


def test_a_hub_cache_that_cannot_be_written_is_told_from_a_hub_that_cannot_be_reached(
    monkeypatch,
):
    import huggingface_hub

    from reground_jax.convert import hub

    def full(*_, **__):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["a.bin"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    message = r"Hub's cache, .* \(No space left on device\): choose another folder with .* HF_HOME"
    with pytest.raises(ValueError, match=message):
        hub.download("owner/name", lambda names: names)
