"""What a request on the command line means, and which are refused, without a model."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reground_jax.attention_guidance import BoxDiff
from reground_jax.cli import build_parser, generate, main
from reground_jax.layout import Layout
from reground_jax.settings import Settings
from tests.command import BEAR, DATA, PROMPT, TEDDY, one_error

COMMANDS = (
    "generate", "compare", "batch", "batch-verify", "map", "convert", "info", "evaluate",
    "compile", "bench", "train",
)  # fmt: skip


def request(*argv: str):
    return generate.read_request(build_parser().parse_args(["generate", *argv]))


def test_prompt_and_boxes_mean_a_layout():
    recipe = request(PROMPT, *BEAR, "--negative-prompt", "blurry")
    boxes = [(0, 0.09, 0.33, 0.76), (0.55, 0.11, 1, 0.8)]
    assert recipe.layout == Layout(PROMPT, ["a teddy bear", "a bird"], boxes, "blurry")
    assert (recipe.settings, recipe.seed) == (Settings(), 0)


def test_a_box_is_split_at_its_last_at_sign():
    layout = request("a sign", "--box", "a sign saying me@home @0,0,.5,1e-1").layout
    assert (layout.phrases, layout.boxes) == (("a sign saying me@home",), ((0, 0, 0.5, 0.1),))


def test_boxes_may_be_given_by_width_and_height(tmp_path):
    corners = request("x", "--box", "a@.25,.5,.5,.25", "--box-format", "xywh").layout.boxes
    assert corners == ((0.25, 0.5, 0.75, 0.75),)
    file = tmp_path / "layout.json"
    file.write_text(
        json.dumps({"prompt": "x", "phrases": ["a"], "boxes": [[0.25, 0.5, 0.5, 0.25]]})
    )
    assert request("--layout", str(file), "--box-format", "xywh").layout.boxes == corners


def test_every_field_of_the_settings_has_an_option():
    options = (
        "--wiring coupled --gamma 0.3,0.2,0.5 --steps 4 --guidance-scale 1 --solver ddim "
        "--eta 1 --height 16 --width 24 --dtype bfloat16 --max-boxes 2 --guidance-interval 0,0.5 "
        "--coupling 0.25 --grounding-weight down=0 --text-weight 0.5:1/0.5:mid=2 "
        "--attention-guidance boxdiff:refine=1,strength=9 --paste"
    )
    made = request("", *options.split()).settings
    assert made == Settings(
        wiring="coupled", gamma=(0.3, 0.2, 0.5), num_steps=4, guidance_scale=1, solver="ddim",
        eta=1, height=16, width=24, dtype="bfloat16", max_boxes=2,
        guidance_interval=(0, 0.5), coupling=0.25, grounding_weight={"down": 0},
        text_weight=[[0.5, 1], [0.5, {"mid": 2}]],
        attention_guidance=BoxDiff(strength=9, refine=True), paste=True,
    )  # fmt: skip
    assert set(made.diff(Settings())) == {field.name for field in dataclasses.fields(Settings)}


def test_the_output_is_named_after_the_prompt_and_stays_a_png(tmp_path):
    from reground_jax.basics.wording import slug
    from reground_jax.cli.request import output_path

    assert slug("A teddy bear, sitting (next) to a Bär!") == "a-teddy-bear-sitting-next-to-a-bär"
    assert slug("...") == "image"
    assert output_path(None, "x-0.png") == Path("x-0.png")
    assert output_path(str(tmp_path), "x-0.png") == tmp_path / "x-0.png"
    assert output_path("new/", "x-0.png") == Path("new/x-0.png")


BAD_REQUESTS = {
    "no prompt": ([], "there is no prompt"),
    "out of range": (["x", "--box", "a@0,0,2,1"], "x1 is 2, outside 0..1"),
    "inverted": (["x", "--box", "a@.5,0,.4,1"], "x1 must not be less than x0"),
    "NaN": (["x", "--box", "a@0,0,nan,1"], "every number must be finite"),
    "not a number": (["x", "--box", "a@0,0,wide,1"], "a box is a list of four numbers"),
    "three numbers": (["x", "--box", "a@0,0,1"], "a box has four numbers, not 3"),
    "no at sign": (["x", "--box", "a bird"], "--box 'a bird' has no '@'"),
    "empty phrase": (["x", "--box", "@0,0,1,1"], "phrase 1 .* must be a nonempty string"),
    "31 boxes": (
        ["x", *(["--box", "a@0,0,1,1"] * 31)],
        "31 boxes, more than --max-boxes 30: .* set --max-boxes 31",
    ),
    "both forms": (["x", "--layout", str(TEDDY)], "not both"),
    "box format": (["x", "--box-format", "yxyx"], "box_format 'yxyx' is unknown"),
    "wiring": (["x", "--wiring", "paralel"], "did you mean 'parallel'"),
    "solver": (["x", "--solver", "dpm"], "solver 'dpm' is unknown"),
    "dtype": (["x", "--dtype", "float16"], "dtype 'float16' is unknown"),
    "size": (["x", "--height", "500"], "height is 500: .*multiples of 8.*try 496 or 504"),
    "size in words": (["x", "--width", "wide"], "width is 'wide', which is not a whole number"),
    "gamma": (["x", "--gamma", "1.5"], "gamma is 1.5: give a fraction"),
    "gamma's sum": (["x", "--gamma", "0.5,0.5,0.5"], "adds up to 1.5"),
    "gamma's text": (["x", "--gamma", "high"], "gamma is 'high', which is not a number"),
    "eta": (["x", "--eta", "0.5"], "only solver 'ddim' takes eta"),
    "steps": (["x", "--steps", "0"], "num_steps is 0"),
    "guidance": (["x", "--guidance-scale", "inf"], "guidance_scale is inf"),
    "seed": (["x", "--seed", "-1"], "seed is -1: a seed is an integer from 0 to 4294967295"),
    "no layout file": (["--layout", "nowhere.json"], "cannot read layout file nowhere.json"),
    "no image": (["--from", "nowhere.png"], "cannot read image nowhere.png"),
    "missing model": (["x", "--model", "nowhere"], "nowhere does not exist"),
    "another file type": (["x", "--out", "x.jpg"], "only PNG files keep the recipe"),
    "unknown option": (
        ["x", "--gammas", "1"],
        "--gammas is not an option .* did you mean --gamma\\? See `.*ate",
    ),
    "option misspelt": (
        ["x", "--guidence-scale=1"],
        "mean --guidance-scale\\? See .*generate --help",
    ),
    "alias misspelt": (["x", "--num-inference-step", "2"], "did you mean --steps\\? See "),
    "two prompts": (["x", "--prompt", "y"], "two prompts are given, 'x' and 'y': leave one out"),
    "no quotes": (["a", "cat"], "'cat' is one argument too many: put text with spaces in quotes"),
    "two seeds": (["x", "--seeds", "0,1"], "seed is '0,1', which is not a whole number: a seed is"),
    "attention": (["x", "--attention", "flash"], "attention 'flash' is unknown: it must be one of"),
    "mapper": (["x", "--mapper", "map"], "mapper 'map' is unknown: did you mean 'pmap'"),
    "advice by option": (["x", "--box", "a@.5,.5,.3,.3"], "or --box-format xywh$"),
}


@pytest.mark.parametrize(("argv", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_one_sentence_and_exit_code_2(argv, message, capsys):
    assert re.search(message, one_error(capsys, ["generate", *argv]))


def test_phrases_and_boxes_of_different_number_are_refused(tmp_path, capsys):
    file = tmp_path / "layout.json"
    file.write_text(json.dumps({"prompt": "x", "phrases": ["a", "b"], "boxes": [[0, 0, 1, 1]]}))
    assert "2 phrases and 1 boxes" in one_error(capsys, ["generate", "--layout", str(file)])
    file.write_text(json.dumps([{"prompt": "x"}, {"prompt": "y"}]))
    assert "has 2 layouts: give a file of one" in one_error(
        capsys, ["generate", "--layout", str(file)]
    )
    file.write_text("{'prompt'")
    assert "is not JSON" in one_error(capsys, ["compare", "--layout", str(file)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["paint"], "invalid choice: 'paint'"),
        (["convert", "only-a-source"], "required: DIR; see `reground-jax convert --help`"),
        (["info", "nowhere"], "nowhere does not exist"),
        (["info", str(DATA / "original_text_box_tiny.bin")], "not converted yet"),
        (["compare", "x", "--columns", "gligan"], "wiring 'gligan' is unknown"),
        (["compare", "x", "--columns", "sequential", "gligan"], "wiring 'gligan' is unknown"),
        (["compare", "x", "--columns", "boxdif+parallel"], "did you mean 'boxdiff'"),
        (["compare", "x", "--columns", "boxdiff+no_text"], "reads the attention to the text"),
        (["compare", "x", "--seeds", "0,one"], "seed 2 of 2 is 'one'"),
        (["compare", "x", "--batch-size", "many"], "--batch-size is many: give a whole number"),
    ],
)
def test_other_commands_refuse_bad_input_alike(argv, message, capsys):
    assert message in one_error(capsys, argv)


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "first steps" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert f"  reground-jax {command} " in shown
    assert max(map(len, shown.splitlines())) <= 100  # columns of a small terminal


def test_bad_requests_are_refused_before_jax_is_imported():
    code = (
        "import sys; from reground_jax.cli import main; "
        "assert main(['generate', 'x', '--box', 'a@0,0,9,1']) == 2; "
        "assert main(['compare', 'x', '--gamma', '2']) == 2; "
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 2  # one sentence each
