"""Fixtures, and checks that are on in all tests: array shapes (jaxtyping, beartype) and ranks."""

import contextlib
import gc
import importlib.util
import os
import shutil
from pathlib import Path

# The tests compile much and run little: LLVM's passes would take longer than they save, and XLA's
# older way to compile fusions takes less time (but see `fusions_of_users`).
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false",
)

# An installed libtpu makes JAX look for a TPU, here and in every process that a test starts. To run
# the tests on an accelerator all the same, name it in this variable.
if importlib.util.find_spec("libtpu") is not None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  the hook names it
from tests.processes import starting

install_import_hook("reground_jax", "tests.typechecker.check")
jax.config.update("jax_numpy_rank_promotion", "raise")  # broadcasting must be explicit
# What the package compiles asks for it itself (`devices.over_devices`); tests that call a network
# without it would otherwise measure the TF32 of an NVIDIA GPU.
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What one test compiles, no other test of this run compiles again, in any worker."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back():
    """Returns the memory that a test file has freed to the system before the next file runs."""
    from reground_jax.storage.checkpoint import return_freed_memory

    yield
    gc.collect()
    return_freed_memory()


@pytest.fixture
def fusions_of_users(monkeypatch):
    """Compiles this package's programs with XLA's default fusion emitters.

    Programs that compute the same as parts of different wholes then give the same bits.
    """
    from reground_jax import devices

    options = devices.compiler_options
    emitters = {"xla_cpu_use_fusion_emitters": "True"}
    monkeypatch.setattr(devices, "compiler_options", lambda chosen: options(chosen) | emitters)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A model directory with random weights and CLIP's real vocabulary; 64x64 images."""
    from reground_jax.convert.tokenizers import build_tokenizer
    from reground_jax.model import random_params, write_model

    built = build_tokenizer(Path(__file__).parent / "data/clip/bpe_simple_vocab_16e6.txt.gz")
    config = tiny_config(built.config)
    directory = tmp_path_factory.mktemp("tiny") / "model"
    write_model(directory, config, random_params(config, 0), built.json, {"source": "random"})
    return directory


def tiny_config(tokenizer, **unet_changes):
    """The configuration of `tiny_model_dir`."""
    from reground_jax.config import (
        CLIPTextConfig,
        ModelConfig,
        TextEncoderConfig,
        UNetConfig,
        VAEConfig,
    )

    unet = dict(
        block_channels=(16,),
        layers_per_block=(1,),
        num_heads=(2,),
        down_attention=(True,),
        up_attention=(True,),
        text_width=16,
        norm_groups=4,
        sample_size=8,
    )
    text = CLIPTextConfig(width=16, num_layers=2, num_heads=2, mlp_width=32, eos_token_id=49407)
    return ModelConfig(
        unet=UNetConfig(**(unet | unet_changes)),
        vae=VAEConfig(block_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4),
        text_encoders=(TextEncoderConfig(text, tokenizer),),
    )


@pytest.fixture(scope="session")
def unchanged(tmp_path_factory) -> Path:
    """The model directory of tests/model_directories.py; no test changes it."""
    from tests.model_directories import written

    return written(tmp_path_factory.mktemp("written") / "model")


@pytest.fixture
def directory(unchanged, tmp_path) -> Path:
    """A copy of `unchanged`, to damage."""
    return Path(shutil.copytree(unchanged, tmp_path / "model"))


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A model directory of tests/training.py's TINY with random weights, without fusers."""
    from reground_jax.model import random_params, write_model
    from tests.training import TINY, TOKENIZER

    directory = tmp_path_factory.mktemp("base") / "model"
    write_model(directory, TINY, random_params(TINY, 0), TOKENIZER, {"source": "random"})
    return directory


@pytest.fixture
def stub(monkeypatch):
    """Gives `reground-jax batch` a stub sampler; returns the list of samplers that were made."""
    from reground_jax.cli import batch
    from reground_jax.cli.sampling import Found
    from tests.batch_stub import CHECKSUM, Stub

    made = []

    def load(directory, run, setup):
        made.append(Stub(run.batch_size))
        return made[-1]

    found = Found(Path("stub"), CHECKSUM, {})
    monkeypatch.setattr(batch, "find_model", lambda *_: found)
    monkeypatch.setattr(batch, "load_sampler", load)
    return made


@pytest.fixture
def start():
    """A function that starts a program, which is ended with the test (tests/processes.py)."""
    with starting() as begin:
        yield begin


@pytest.fixture
def memory():
    """An in-memory object store from fsspec, emptied afterwards."""
    store = pytest.importorskip("fsspec").filesystem("memory")
    yield store
    store.store.clear()


@pytest.fixture
def ten(tmp_path) -> Path:
    """A file of ten layouts for `reground-jax batch`."""
    from tests.batch_cases import layout, write_lines

    return write_lines(tmp_path / "ten.jsonl", [layout(i) for i in range(10)])


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """Each `main` makes its own programs; a cache like the users' saves recompiling them."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    folder = str(tmp_path_factory.mktemp("xla"))

    @contextlib.contextmanager
    def kept():
        before = {name: getattr(jax.config, name) for name in names}
        jax.config.update(names[0], folder)
        jax.config.update(names[1], 0.0)
        compilation_cache.reset_cache()  # JAX reads the settings once, at its first compilation
        yield
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    return kept


@pytest.fixture(scope="module")
def kept_programs(programs):
    """Keeps what a test file compiles, for the next file that uses this fixture."""
    with programs():
        yield


@pytest.fixture(scope="session")
def bear(programs, tiny_model_dir, tmp_path_factory) -> Path:
    """An image that `generate` made."""
    from reground_jax.cli import main
    from tests.command import BEAR, FEW, PROMPT

    out = tmp_path_factory.mktemp("bear") / "bear.png"
    argv = ["generate", PROMPT, *BEAR, "--model", str(tiny_model_dir), *FEW, "--out", str(out)]
    argv += ["--seed", "7", "--gamma", "0.5,0,0.5", "--negative-prompt", "blurry"]
    with programs():
        assert main(argv) == 0
    return out


@pytest.fixture
def compiled():
    """A list with an event for each program that is compiled during a test."""
    import jax

    events = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def pytest_make_parametrize_id(config, val) -> str | None:
    """Shortens long parameters in test names."""
    return f"{val[:20]!r}..." if isinstance(val, (str, bytes)) and len(val) > 200 else None


@pytest.fixture
def rendered(monkeypatch) -> list:
    """The samplers that `evaluate` has made, which draw what was asked for."""
    from reground_jax.cli import evaluate
    from tests.evaluating import Renderer

    made: list[Renderer] = []

    def load(*_):
        made.append(Renderer())
        return made[-1]

    monkeypatch.setattr(evaluate, "load_pipeline", load)
    monkeypatch.setattr(evaluate, "sampler_on", lambda pipe, run: pipe)
    return made
