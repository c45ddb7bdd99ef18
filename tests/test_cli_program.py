"""The program around the commands: how it ends, and what it prints on the way."""

import subprocess
import sys

import jax
import pytest

from reground_jax.cli import generate, main
from reground_jax.cli.progress import COUNTED, Bar, hint
from reground_jax.devices import compile_clock


def test_an_interrupt_is_one_line_and_exit_code_130(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "run", interrupted)
    assert main(["generate", "x"]) == 130
    assert capsys.readouterr().err == "reground-jax: interrupted\n"


def test_running_out_of_device_memory_says_what_to_do(capsys, monkeypatch):
    def too_large(arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")

    monkeypatch.setattr(generate, "run", too_large)
    assert main(["generate", "x"]) == 1
    assert "use a smaller --height" in capsys.readouterr().err


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="gamma is 2"):
        main(["generate", "x", "--gamma", "2", "--debug"])


def test_a_bar_counts_all_batches_and_is_not_there_before_the_first_report(capsys):
    with Bar("nothing"):
        pass
    assert capsys.readouterr().err == ""
    with Bar("steps", unit="step") as bar:
        for done in range(1, 7):
            bar.show(done, 6)
    assert "6/6" in capsys.readouterr().err


def test_images_are_counted_in_words(capsys):
    with Bar("measuring", bar_format=COUNTED) as bar:
        bar.show(0, 74)
        bar.show(12, 74)
        bar.show(74, 74)
    assert "74 of 74 images [" in capsys.readouterr().err


def test_a_word_before_a_silence_is_for_terminals(capsys, monkeypatch):
    hint("loading emoji ...")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    hint("loading emoji ...")
    assert capsys.readouterr().err == "reground-jax: loading emoji ...\n"


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [(["batch", "--help"], {0, 141}), (["info"], {141})],  # argparse may hide the error
    ids=["help", "info"],
)
def test_a_reader_that_goes_away_is_no_error(arguments, codes):
    """As in `reground-jax info | head -0`: neither "Broken pipe" nor a traceback."""
    code = "import sys; from reground_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    process.stdout.close()  # long before anything is written
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(600) in codes and errors == b""


def test_jax_still_reports_how_long_it_compiles():
    with compile_clock() as seconds:
        assert seconds() == 0
        jax.jit(lambda x: x + 1)(1.0)
        assert seconds() > 0
