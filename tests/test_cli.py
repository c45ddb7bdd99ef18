"""The command line, in this process by `main(argv)`, and as a program where that matters."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from reground_jax.cli import build_parser, compare, convert, generate, main
from reground_jax.cli.progress import Bar
from reground_jax.cli.sampling import load
from reground_jax.devices import compile_clock
from reground_jax.draw import comparison_grid
from reground_jax.images import read_recipe, save_png
from reground_jax.layout import Layout
from reground_jax.model import (
    random_params,
    read_description,
    read_model,
    write_model,
)
from reground_jax.settings import Settings
from tests.conftest import tiny_config
from tests.originals import write_tiny_tokenizer

DATA = Path(__file__).parent / "data"
TEDDY = DATA / "layouts" / "teddy.json"
BEAR = ["--box", "a teddy bear@0,0.09,0.33,0.76", "--box", "a bird@0.55,0.11,1,0.8"]
PROMPT = "a teddy bear sitting next to a bird"
FEW = ["--steps", "2"]  # PLMS needs 2 to have a first step and another


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Each `main` makes its own programs: the cache that users have saves compiling them again."""
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # JAX looks at the settings once, at its first compilation
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def bear(tiny_model_dir, tmp_path_factory) -> Path:
    """An image that `generate` made."""
    out = tmp_path_factory.mktemp("bear") / "bear.png"
    argv = ["generate", PROMPT, *BEAR, "--model", str(tiny_model_dir), *FEW, "--out", str(out)]
    assert main([*argv, "--seed", "7", "--gamma", "0.5,0,0.5", "--negative-prompt", "blurry"]) == 0
    return out


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def one_error(capsys, argv: list[str]) -> str:
    """The sentence of bad input, after checking that there is nothing else."""
    capsys.readouterr()
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("reground-jax: error: ")
    return line.removeprefix("reground-jax: error: ")


def run_program(*argv: str, home: Path) -> subprocess.CompletedProcess:
    """The installed program, as in a shell; `home` keeps its caches."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    return subprocess.run(
        [sys.executable, "-c", "import sys; from reground_jax.cli import main; sys.exit(main())"]
        + list(argv),
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=600,  # it takes about 10 s, and more where many run at once
    )


def request(*argv: str):
    return generate.read_request(build_parser().parse_args(["generate", *argv]))


# ---- requests


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
        "--wiring sequential --gamma 0.3,0.2,0.5 --steps 4 --guidance-scale 1 --solver ddim "
        "--eta 1 --height 16 --width 24 --dtype bfloat16 --max-boxes 2 --guidance-interval 0,0.5"
    )
    made = request("", *options.split()).settings
    assert made == Settings(
        wiring="sequential", gamma=(0.3, 0.2, 0.5), num_steps=4, guidance_scale=1, solver="ddim",
        eta=1, height=16, width=24, dtype="bfloat16", max_boxes=2,
        guidance_interval=(0, 0.5),
    )  # fmt: skip
    assert set(made.diff(Settings())) == {field.name for field in dataclasses.fields(Settings)}


def test_the_output_is_named_after_the_prompt_and_stays_a_png(tmp_path):
    from reground_jax.cli.request import output_path, slug

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
    "empty phrase": (["x", "--box", "@0,0,1,1"], "phrase 1 .* must be a text that is not empty"),
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
    "eta": (["x", "--eta", "0.5"], "only solver 'ddim' adds noise"),
    "steps": (["x", "--steps", "0"], "num_steps is 0"),
    "guidance": (["x", "--guidance-scale", "inf"], "guidance_scale is inf"),
    "seed": (["x", "--seed", "-1"], "seed is -1: a seed is an integer from 0 to 4294967295"),
    "no layout file": (["--layout", "nowhere.json"], "cannot read layout file nowhere.json"),
    "no image": (["--from", "nowhere.png"], "cannot read image nowhere.png"),
    "missing model": (["x", "--model", "nowhere"], "nowhere does not exist"),
    "another file type": (["x", "--out", "x.jpg"], "only PNG keeps the recipe"),
    "unknown option": (
        ["x", "--tau", "1"],
        "--tau is no option .* did you mean --gamma\\? See `.*ate",
    ),
    "option misspelt": (
        ["x", "--guidence-scale=1"],
        "mean --guidance-scale\\? See .*generate --help",
    ),
    "option of others": (["x", "-o", "y.png"], "-o is no option .* did you mean --out"),
    "prompt as option": (["--prompt", "x"], "--prompt is no option .*: the prompt stands alone"),
    "no quotes": (["a", "cat"], "'cat' is one argument too many: put texts with spaces in quotes"),
    "advice by option": (["x", "--box", "a@.5,.5,.3,.3"], "or --box-format xywh$"),
}


@pytest.mark.parametrize(("argv", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_one_sentence_and_exit_code_2(argv, message, capsys):
    assert re.search(message, one_error(capsys, ["generate", *argv]))


def test_phrases_and_boxes_of_different_number_are_refused(tmp_path, capsys):
    file = tmp_path / "layout.json"
    file.write_text(json.dumps({"prompt": "x", "phrases": ["a", "b"], "boxes": [[0, 0, 1, 1]]}))
    assert "2 phrases and 1 boxes" in one_error(capsys, ["generate", "--layout", str(file)])
    file.write_text("{'prompt'")
    assert "is not JSON" in one_error(capsys, ["compare", "--layout", str(file)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["paint"], "invalid choice: 'paint'"),
        (["convert", "only-a-source"], "required: DST; see `reground-jax convert --help`"),
        (["info", "nowhere"], "nowhere does not exist"),
        (["info", str(DATA / "original" / "original_text_box_tiny.bin")], "not converted yet"),
        (["compare", "x", "--columns", "gligan"], "wiring 'gligan' is unknown"),
        (["compare", "x", "--seeds", "0,one"], "seed 2 of 2 is 'one'"),
        (["compare", "x", "--batch-size", "many"], "invalid int value: 'many'"),
    ],
)
def test_other_commands_refuse_bad_input_alike(argv, message, capsys):
    assert message in one_error(capsys, argv)


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "first steps" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["convert", "generate", "compare", "evaluate", "info"])
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
    assert len(done.stderr.splitlines()) == 2  # a sentence each


# ---- generate


def test_generate_writes_the_image_with_its_recipe_and_the_boxes(bear, tiny_model_dir):
    assert pixels(bear).shape == (64, 64, 3)
    recipe = read_recipe(bear)
    assert recipe.layout.phrases == ("a teddy bear", "a bird")
    assert recipe.layout.negative_prompt == "blurry"
    assert recipe.settings == Settings(gamma=(0.5, 0, 0.5), num_steps=2)
    assert (recipe.seed, recipe.checkpoint) == (7, str(tiny_model_dir))
    assert recipe.checksum == read_description(tiny_model_dir).checksum
    assert pixels(bear.with_name("bear.boxes.png")).shape == (512, 512, 3)  # enlarged for labels
    assert sorted(path.name for path in bear.parent.iterdir()) == ["bear.boxes.png", "bear.png"]


def test_generate_from_an_image_makes_the_same_file(bear, tmp_path, capsys):
    again = tmp_path / "again.png"
    assert main(["generate", "--from", str(bear), "--out", str(again), "--no-boxes-image"]) == 0
    assert again.read_bytes() == bear.read_bytes()  # pixels and recipe
    printed = capsys.readouterr()
    assert printed.out == f"{again}\n"
    cost, device, *bars = printed.err.splitlines()
    assert cost == f"reground-jax: {bear}: 64x64 pixels, 2 steps, 2 boxes, model 'model'"
    assert re.fullmatch(r"reground-jax: cpu, float32, compiled in \d+\.\d s", device)
    assert "2/2" in bars[-1] and "step" in bars[-1]  # "step/s", or "s/step" where it is slow
    assert list(tmp_path.iterdir()) == [again]


def test_jax_still_reports_how_long_it_compiles():
    with compile_clock() as seconds:
        assert seconds() == 0
        jax.jit(lambda x: x + 1)(1.0)
        assert seconds() > 0


def test_options_beside_from_change_what_they_name(bear, tmp_path, capsys):
    out = tmp_path / "other.png"
    argv = ["generate", "--from", str(bear), "--out", str(out), "--no-boxes-image"]
    assert main([*argv, "--guidance-scale", "3", "--seed", "8", "--negative-prompt", ""]) == 0
    assert "but guidance_scale 7.5 -> 3" in capsys.readouterr().err
    old, new = read_recipe(bear), read_recipe(out)
    assert new == dataclasses.replace(
        old,
        settings=dataclasses.replace(old.settings, guidance_scale=3.0),
        seed=8,
        layout=dataclasses.replace(old.layout, negative_prompt=""),
    )
    assert (pixels(out) != pixels(bear)).mean() > 0.5  # of the values: another image
    message = one_error(capsys, [*argv, "--box", "a@0,0,1,1"])
    assert "has the prompt and the boxes: leave out" in message
    assert "2 boxes, more than --max-boxes 1" in one_error(capsys, [*argv, "--max-boxes", "1"])


def test_a_model_that_is_gone_or_another_is_named(bear, tiny_model_dir, tmp_path, capsys):
    image, out = tmp_path / "image.png", tmp_path / "out.png"
    recipe = read_recipe(bear)

    gone = str(tmp_path / "gone")
    save_png(image, pixels(bear), dataclasses.replace(recipe, checkpoint=gone))
    message = one_error(capsys, ["generate", "--from", str(image)])
    assert f"was made with model '{gone}'" in message and "--model" in message

    save_png(image, pixels(bear), dataclasses.replace(recipe, checksum="0123456789abcdef"))
    message = one_error(capsys, ["generate", "--from", str(image)])
    assert "0123456789ab" in message and recipe.checksum[:12] in message

    argv = ["generate", "--from", str(image), "--out", str(out), "--model", str(tiny_model_dir)]
    assert main(argv) == 0
    assert "reground-jax: warning: " in capsys.readouterr().err
    np.testing.assert_array_equal(pixels(out), pixels(bear))


def test_an_image_without_a_recipe_is_refused(bear, capsys):
    drawn = bear.with_name("bear.boxes.png")
    assert "was not written by reground-jax" in one_error(
        capsys, ["generate", "--from", str(drawn)]
    )


def test_an_empty_prompt_is_legal_and_a_long_one_is_cut_with_one_warning(
    tiny_model_dir, tmp_path, capsys
):
    argv = ["generate", "--model", str(tiny_model_dir), *FEW, "--guidance-scale", "1"]
    assert main([*argv, "", "--out", str(tmp_path / "empty.png")]) == 0
    assert "warning" not in capsys.readouterr().err
    long = " ".join(["bird"] * 75 + ["badger"])  # one token each: 76, one too many
    assert main([*argv, long, "--out", str(tmp_path / "long.png")]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("reground-jax: warning: 1 of the texts") and "'badger'" in line
    assert not list(tmp_path.glob("*.boxes.png"))  # there are no boxes to draw


# ---- models that cannot be used


@pytest.fixture
def compiled():
    """The programs that are compiled during a test."""
    events = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grounding": None}, "this is a plain Stable Diffusion checkpoint"),
        ({"in_channels": 9, "inpainting": True}, "this is an inpainting checkpoint"),
    ],
)
def test_models_without_boxes_are_refused_before_compiling(
    changes, message, tiny_model_dir, tmp_path, capsys, compiled
):
    model = read_model(tiny_model_dir)
    config = tiny_config(model.config.text_encoder.tokenizer, **changes)
    write_model(tmp_path / "m", config, random_params(config, 0), model.tokenizer_json, {})
    assert message in one_error(capsys, ["generate", PROMPT, *BEAR, "--model", str(tmp_path / "m")])
    assert compiled == []


def test_a_damaged_model_directory_is_refused(tiny_model_dir, tmp_path, capsys, compiled):
    broken = tmp_path / "model"
    shutil.copytree(tiny_model_dir, broken)
    shutil.rmtree(broken / "arrays" / "000" / "state")
    request = ["generate", "x", "--model", str(broken)]
    assert "is missing or damaged" in one_error(capsys, request)
    (broken / "config.json").write_text('{"format": "reground-jax/1"}')
    assert "config.json has no 'info'" in one_error(capsys, ["info", str(broken)])
    assert compiled == []


def test_a_truncated_array_file_leaves_no_traceback_on_stderr(tiny_model_dir, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(tiny_model_dir, broken)
    largest = max((broken / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, 10)
    done = run_program("generate", "x", "--model", str(broken), home=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("reground-jax: error: ") and "damaged" in line


# ---- compare


def test_compare_draws_a_row_per_seed_and_a_column_per_wiring(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "figure.png"
    argv = ["compare", "--layout", str(TEDDY), "--model", str(tiny_model_dir), *FEW]
    assert main([*argv, "--seeds", "7,3", "--batch-size", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert printed.err.count("compiled in") == 1
    for column in compare.COLUMNS.split(","):
        assert f"{column}: 100%" in printed.err
    height, width, _ = pixels(out).shape
    assert width > 4 * 512 and height > 2 * 512  # four panels of 512 pixels across, two down


def test_a_figure_shows_the_images_that_generate_makes(bear, tiny_model_dir, tmp_path):
    out, recipe = tmp_path / "figure.png", read_recipe(bear)
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(recipe.layout.to_json()))
    argv = ["compare", "--layout", str(file), "--model", str(tiny_model_dir), *FEW]
    argv += ["--gamma", "0.5,0,0.5", "--seeds", "7", "--columns", "layout,parallel"]
    assert main([*argv, "--out", str(out)]) == 0
    images = {"parallel": [pixels(bear)]}
    expected = comparison_grid([recipe.layout], images, row_labels=["seed 7"])
    np.testing.assert_array_equal(pixels(out), np.asarray(expected))


# ---- info and convert


def test_info_says_what_a_model_is(tiny_model_dir, capsys, compiled):
    assert main(["info", str(tiny_model_dir)]) == 0
    shown = capsys.readouterr().out
    assert main(["info", "--model", str(tiny_model_dir)]) == 0
    assert capsys.readouterr().out == shown
    model = read_model(tiny_model_dir)
    assert model.info["checksum"] in shown and "float32" in shown and "images of 64x64" in shown
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(model.params)):,} parameters" in shown
    assert "4 pairs" in shown  # a fuser on the way down, one in the middle, two on the way up
    fuser = model.params["unet"]["down_blocks"][0]["attentions"][0]["block"]["fuser"]
    gates = [f"{np.tanh(fuser[name]):+.4f}" for name in ("alpha_attn", "alpha_dense")]
    assert f"down_blocks/0/attentions/0 {' '.join(gates)}" in " ".join(shown.split())
    assert "beta_schedule=scaled_linear" in shown
    assert compiled == []


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory) -> Path:
    """A vocabulary of 256 with the special tokens of the tiny original (begin 0, end 255)."""
    return write_tiny_tokenizer(tmp_path_factory.mktemp("original") / "tokenizer")


def convert_original(destination: Path, tokenizer: Path, *options: str) -> list[str]:
    source = DATA / "original" / "original_text_box_tiny.bin"
    return ["convert", str(source), str(destination), "--tokenizer", str(tokenizer), *options]


def test_convert_writes_a_model_and_reports_on_it(byte_tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = convert_original(Path("tiny"), byte_tokenizer, "--dtype", "bfloat16")  # a relative path
    assert main(argv) == 0
    printed = capsys.readouterr()
    info = read_model(tmp_path / "tiny").info
    assert info["checksum"] in printed.out and "bfloat16" in printed.out
    assert "original_text_box_tiny.bin (original)" in printed.out
    assert "GLIGEN text-box generation" in printed.out
    assert "converting: 100%" in printed.err
    assert "exists already" in one_error(capsys, argv)


def fake_verify(monkeypatch, errors: dict[str, float]) -> list:
    """Stands for `convert/verify.py`, which takes torch and minutes."""
    calls = []

    def verify(source, destination, **options):
        calls.append((source, destination, options))
        return errors

    module = types.SimpleNamespace(verify=verify, TOLERANCE=1e-4)
    monkeypatch.setitem(sys.modules, "reground_jax.convert.verify", module)
    return calls


@pytest.mark.parametrize(
    ("error", "code"),
    [(1e-4, 0), (1.01e-4, 1), (float("nan"), 1)],  # the tolerance, just above, of no order
)
def test_verify_exits_with_1_above_its_tolerance(
    error, code, byte_tokenizer, tmp_path, capsys, monkeypatch
):
    calls = fake_verify(monkeypatch, {"unet": error, "vae": 0.0})
    argv = convert_original(tmp_path / "m", byte_tokenizer, "--verify")
    assert main(argv) == code
    assert calls == [(argv[1], tmp_path / "m", {"adapter": None, "variant": None})]
    assert f"unet differs by {error:.1e}" in capsys.readouterr().out


def test_verify_without_torch_says_so_before_converting(
    byte_tokenizer, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(convert, "VERIFIERS", ("json", "no_such_library"))
    argv = convert_original(tmp_path / "m", byte_tokenizer, "--verify")
    message = one_error(capsys, argv)
    assert "no_such_library is not installed" in message and "reground-jax[verify]" in message
    assert not (tmp_path / "m").exists()


def test_sources_that_cannot_be_converted_are_refused(byte_tokenizer, tmp_path, capsys):
    header = json.dumps({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))  # of 36 bytes
    target = str(tmp_path / "m")
    assert "is truncated" in one_error(capsys, ["convert", str(cut), target])
    assert "nowhere does not exist" in one_error(capsys, ["convert", "nowhere", target])
    argv = convert_original(tmp_path / "m", byte_tokenizer)
    assert "dtype is 'int8'" in one_error(capsys, [*argv, "--dtype", "int8"])
    assert "nowhere does not exist" in one_error(capsys, [*argv, "--adapter", "nowhere"])
    argv = convert_original(tmp_path / "m", tmp_path / "nowhere")
    assert "tokenizer" in one_error(capsys, argv)
    assert not list(tmp_path.glob("*m*/"))  # nor anything half written


def test_a_plain_stable_diffusion_folder_is_refused(tmp_path, capsys):
    from tests import reference

    reference.write_diffusers(tmp_path / "sd", "sd1", attention_type="default")
    message = one_error(capsys, ["convert", str(tmp_path / "sd"), str(tmp_path / "m")])
    assert "plain Stable Diffusion checkpoint" in message and "--adapter" in message


# ---- the program around the commands


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
    assert "take a smaller --height" in capsys.readouterr().err


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


def test_the_program_keeps_what_it_compiles(bear, tmp_path):
    argv = ["generate", "--from", str(bear), "--no-boxes-image", "--out"]
    for name in ("compiled.png", "loaded.png"):
        done = run_program(*argv, str(tmp_path / name), home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).read_bytes() == bear.read_bytes()
    assert any((tmp_path / ".cache" / "reground-jax" / "xla").iterdir())


def test_the_cache_can_be_turned_off(tiny_model_dir):
    try:
        load(tiny_model_dir, "float32", keep=False)
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_what_is_compiled_ahead_is_not_compiled_again(tiny_model_dir, tmp_path, capsys):
    model = ["--model", str(tiny_model_dir), "--steps", "3", "--solver", "euler"]
    assert main(["compile", *model, "--guidance-interval", "0,0.5"]) == 0
    assert "ready for 1 images per device" in capsys.readouterr().err
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
        (["--repeats", "0"], "--repeats is 0: give at least 1"),
        (["--dtype", "half"], "dtype 'half' is unknown"),
    ],
)
def test_bench_says_what_it_cannot_do(argv, sentence, capsys):
    assert sentence in one_error(capsys, ["bench", *argv])
