"""`reground-jax info`: the default model, an untrusted one, and what it reads."""

from reground_jax.cli import main
from reground_jax.convert.locate import MODELS
from tests.model_directories import edit


def test_info_without_a_model_shows_the_default_one(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{MODELS / 'emoji'}\n")
    assert main(["info", "emoji"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["info", "emoji", "--model", "emoji-parallel"]) == 2
    assert "two models are given" in capsys.readouterr().err


def test_info_of_a_stranger_moves_no_cursor(directory, capsys):
    edit(directory, lambda content: content["info"].update(source="\x1b[2J\r\nnone"))
    assert main(["info", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines())
    assert "source        ?[2J??none" in shown
