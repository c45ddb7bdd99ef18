"""Options: made from dataclasses, with aliases and lists, and the same meaning everywhere."""

import argparse
import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from reground_jax.basics.options import options
from reground_jax.cli import bench, build_parser, evaluate, request
from reground_jax.cli.options import given, made
from reground_jax.cli.parser import Parser
from reground_jax.cli.sampling import BACKENDS, MAPPERS, Found, Setup
from reground_jax.settings import Settings
from tests.command import one_error

SAMPLING = ("generate", "compare", "batch", "evaluate", "compile")  # commands that make images


def parse(*argv: str) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def words(command: str) -> list[str]:
    """The minimal arguments of a command."""
    return {
        "generate": [command, "x"],
        "compare": [command, "x"],
        "batch": [command, "x", "--out", "y"],
    }.get(command, [command])


def commands() -> dict[str, Parser]:
    found = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)  # type: ignore[arg-type]


# ---- lists


@pytest.mark.parametrize(
    "seeds", ["0,1,2", "0 1 2", "0,1 2", "0, 1, 2", "0 ,1,2", ["0,1,2"], ["0", "1", "2"], ["0 1 2"]]
)
def test_a_list_is_written_with_commas_or_spaces(seeds):
    given_words = seeds.split(" ") if isinstance(seeds, str) else seeds
    for command in ("compare", "batch"):
        assert parse(*words(command), "--seeds", *given_words).seeds == [0, 1, 2]
    assert parse(*words("compare"), "--seeds=0", "1", "2").seeds == [0, 1, 2]


def test_a_list_leaves_the_words_after_it_alone():
    arguments = parse("compare", "--seeds", "0", "1", "a cat", "--columns", "gligen", "sd")
    assert (arguments.prompt, arguments.seeds) == ("a cat", [0, 1])
    assert arguments.columns == ["gligen", "sd"]
    arguments = parse("batch", "--wirings", "gligen", "sd", "a.jsonl", "--out", "y")
    assert (arguments.wirings, arguments.layouts) == (["gligen", "sd"], "a.jsonl")
    assert parse("batch", "x", "--out", "y", "--seeds", "-1", "2").seeds == [-1, 2]


def test_gammas_mean_the_same_in_every_command():
    for command in ("batch", "evaluate"):

        def gammas(*given_words, command=command):
            return parse(*words(command), "--gammas", *given_words).gammas

        assert gammas("0,0.3,1") == gammas("0", "0.3", "1") == [0, 0.3, 1]
        assert gammas("0.3/0/0.7", "0.5/0/0.5") == [[0.3, 0, 0.7], [0.5, 0, 0.5]]
        assert gammas("0.3", "0", "0.7") == [0.3, 0, 0.7]  # as the error says


@pytest.mark.parametrize("command", ["batch", "evaluate"])
@pytest.mark.parametrize("gammas", [["0.3,0,0.7"], ["1,0,0"], ["0.5", "0.3,0,0.7"]])
def test_a_list_that_might_be_one_gamma_of_three_parts_is_refused(command, gammas, capsys):
    message = one_error(capsys, [*words(command), "--gammas", *gammas])
    parts = gammas[-1].split(",")
    assert f"write {' '.join(parts)} for three gammas, or {'/'.join(parts)} for one" in message


def test_one_gamma_has_its_parts_between_slashes_or_commas():
    for text in ("0.3,0,0.7", "0.3/0/0.7"):
        arguments = parse("generate", "x", "--gamma", text)
        assert Settings(**given(arguments, Settings)).gamma == (0.3, 0, 0.7)
    interval = parse("generate", "x", "--guidance-interval", "0", "0.5")
    assert made(Settings, interval).guidance_interval == (0, 0.5)


def test_a_study_compares_plain_fractions(capsys):
    message = one_error(capsys, ["evaluate", "--gammas", "1/0/0"])
    assert "--gammas has 1/0/0: a study compares plain fractions" in message


# ---- names


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["--num-steps", "7"], {"num_steps": 7}),
        (["--num-inference-steps=7"], {"num_steps": 7}),
        (["--cfg", "3"], {"guidance_scale": 3}),
        (["--cfg-scale", "3"], {"guidance_scale": 3}),
        (["--sampler", "ddim"], {"solver": "ddim"}),
        (["--scheduler=ddim"], {"solver": "ddim"}),
    ],
)
def test_other_programs_names_are_options_of_every_command_that_samples(written, meant):
    for command in SAMPLING:
        assert given(parse(*words(command), *written), Settings) == meant


def test_short_names_and_one_or_many_are_understood():
    arguments = parse("generate", "-m", "here", "-o", "x.png", "--prompt", "a cat", "--seeds", "3")
    assert (arguments.model, arguments.out, arguments.seed) == ("here", "x.png", 3)
    assert arguments.prompt_option == "a cat"
    arguments = parse("batch", "x", "-o", "y", "--seed", "3", "--gamma", "0.5", "--wiring", "sd")
    assert (arguments.out, arguments.seeds) == ("y", [3])
    assert (arguments.gammas, arguments.wirings) == ([0.5], ["sd"])


def test_no_alias_clashes_with_an_option_of_its_command():
    for name, parser in commands().items():
        own = set(parser._option_string_actions)
        assert not own & set(parser.aliases), name
        assert set(parser.aliases.values()) <= own, name


def test_the_same_options_are_there_wherever_a_model_runs():
    for name in SAMPLING:
        own = set(commands()[name]._option_string_actions)
        assert own >= {"--model", "--cache", "--no-cache", "--dtype", "--mapper"}, name
        # It would change the last bits of runs, of which studies consist.
        assert ("--attention" in own) == (name not in ("batch", "evaluate"))
    assert {"--dtype", "--mapper", "--attention", "--model"} <= set(
        commands()["bench"]._option_string_actions
    )


def test_an_option_says_what_it_is_when_nothing_is_given():
    shown = " ".join(commands()["generate"].format_help().split())
    assert "denoising steps, 1 to 1000 (default: the model's, or 50)" in shown
    assert "(default: the model's own)" in shown  # height and width
    assert "(default: shard_map)" in shown
    assert "--num-inference-steps" not in shown  # accepted, not listed
    shown = " ".join(commands()["bench"].format_help().split())
    assert "denoising steps, 1 to 1000 (default: 10)" in shown


def test_every_option_of_a_dataclass_has_help_and_a_default():
    for cls in (Settings, Setup, request.Variants, request.OneSeed):
        described = options(cls)
        assert list(described) == [field.name for field in dataclasses.fields(cls)]
        assert all(option.help and option.name.startswith("--") for option in described.values())


def test_names_that_are_repeated_to_spare_imports_are_the_real_ones():
    from reground_jax.devices import MAPPERS as mappers
    from reground_jax.networks.attention import BACKENDS as backends

    assert (MAPPERS, BACKENDS) == (mappers, backends)


# ---- settings


def test_settings_are_the_models_but_for_what_is_given():
    suits = {"guidance_scale": 4.0, "solver": "dpmpp_2m", "num_steps": 20}
    model = Found(Path("model"), "0" * 64, suits)
    assert model.settings({}) == Settings(**suits, dtype="float32")
    assert model.settings({"num_steps": 7}).num_steps == 7
    assert Found(Path("model"), "0" * 64, {}).settings({}) == Settings(dtype="float32")


def test_a_benchmark_has_settings_of_its_own():
    given = bench.settings_of(parse("bench"))
    assert given == Settings(num_steps=10, gamma=0.3, solver="ddim", dtype="float32")
    assert bench.settings_of(parse("bench", "--num-steps", "3")).num_steps == 3


@pytest.mark.parametrize(
    "options_given",
    [
        [],
        ["--gammas", "0,1"],
        ["--gammas", "0.3", "0", "0.7"],
        ["--steps", "7", "--cfg", "3", "--guidance-interval", "0,0.5"],
        ["--couplings", "0.5", "down=0,mid=0", "--gammas-of-more", "0.3,0.5,1"],
        ["--attention-guidance", "boxdiff,lmd", "--gammas-of-more", "1"],
        ["--attention-guidance", "boxdiff:refine=1,strength=9", "lmd"],
        ["--rich-phrases", "--layouts", "8", "--gate-scale", "1.25"],
        ["--model", "my model", "--parallel-model", "other", "--batch-size", "4"],
    ],
)
def test_the_command_of_a_study_asks_for_the_same_study(options_given):
    arguments = evaluate.study_parser().parse_args([*options_given, "--out", "my study"])
    program, command, *again = shlex.split(evaluate.command_of(arguments))
    assert (program, command) == ("reground-jax", "evaluate")
    assert vars(evaluate.study_parser().parse_args(again)) == vars(arguments)


def test_a_study_measures_more_methods_once_each():
    def more(*words: str) -> list[str]:
        return evaluate.more_methods(evaluate.study_parser().parse_args([*words]))

    assert more() == []
    assert more("--couplings", "1", "0.5", "0", "down=0,mid=0", "0.5") == [
        "coupled:0.5", "coupled:down=0,mid=0"
    ]  # fmt: skip
    assert more("--attention-guidance", "boxdiff", "lmd:strength=9", "--couplings", "0.5") == [
        "coupled:0.5", "boxdiff+sequential", "boxdiff+parallel", "lmd:strength=9+sequential",
        "lmd:strength=9+parallel",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="did you mean 'boxdiff'"):
        more("--attention-guidance", "boxdif")


def test_parsing_imports_no_jax():
    code = (
        "import sys; from reground_jax.cli import build_parser; "
        "build_parser().parse_args(['compare', 'x', '--seeds', '0', '1', '--cfg', '2']); "
        "assert not {'jax', 'flax', 'tokenizers', 'tqdm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
