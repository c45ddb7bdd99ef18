"""`reground-jax compile` and `bench`, and the programs that commands keep."""

import json

import jax
import pytest

from reground_jax.cli import main
from reground_jax.cli.sampling import Setup, load
from tests.command import BEAR, PROMPT, one_error, run_program

pytestmark = pytest.mark.usefixtures("kept_programs")


def test_the_program_keeps_what_it_compiles(bear, tmp_path):
    argv = ["generate", "--from", str(bear), "--no-boxes-image", "--out"]
    for name in ("compiled.png", "loaded.png"):
        done = run_program(*argv, str(tmp_path / name), home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).read_bytes() == bear.read_bytes()
    assert any((tmp_path / ".cache" / "reground-jax" / "xla").iterdir())


def test_the_cache_can_be_turned_off(tiny_model_dir):
    try:
        load(tiny_model_dir, "float32", Setup(no_cache=True))
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_what_is_compiled_ahead_is_not_compiled_again(tiny_model_dir, tmp_path, capsys):
    model = ["--model", str(tiny_model_dir), "--steps", "3", "--solver", "euler"]
    assert main(["compile", *model, "--guidance-interval", "0,0.5"]) == 0
    assert "ready for 1 image per device" in capsys.readouterr().err
    missed = []
    jax.monitoring.register_event_listener(lambda event, **_: missed.append(event))
    out = tmp_path / "bear.png"
    request = ["generate", PROMPT, *BEAR, *model, "--gamma", "0.4", "--out", str(out)]
    for interval in ("0,0.5", "0,1"):
        assert main([*request, "--guidance-interval", interval]) == 0
    assert "/jax/compilation_cache/cache_hits" in missed
    assert "/jax/compilation_cache/cache_misses" not in missed


def test_compile_refuses_what_it_could_not_keep(capsys):
    assert "--no-cache" in one_error(capsys, ["compile", "--no-cache"])
    assert "--batch-size is 0" in one_error(capsys, ["compile", "--batch-size", "0"])


def test_bench_measures_a_model_and_writes_every_repetition(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "vae.json"
    argv = ["bench", "vae", "--model", str(tiny_model_dir), "--repeats", "3", "--out", str(out)]
    assert main(argv) == 0
    assert "decode" in capsys.readouterr().out
    (result,) = json.loads(out.read_text())["results"]
    assert len(result["seconds"]) == 3


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["vea"], "benchmark 'vea' is unknown: did you mean 'vae'"),
        (["--preset", "large"], "preset 'large' is unknown"),
        (["--repeats", "0"], "--repeats is 0: give a whole number, at least 1"),
        (["--dtype", "half"], "dtype 'half' is unknown"),
    ],
)
def test_bench_says_what_it_cannot_do(argv, sentence, capsys):
    assert sentence in one_error(capsys, ["bench", *argv])
