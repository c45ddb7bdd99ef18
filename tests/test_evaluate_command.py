"""`reground-jax evaluate` with a stand-in for the model: its steps and refusals."""

import argparse
import json
import random
import shlex
import sys
import time
from pathlib import Path

import pytest

from reground_jax.cli import evaluate, main
from reground_jax.cli.evaluate import command_of, default_arguments
from tests.evaluating import evaluated
from tests.processes import finish, wait_for


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ([], ""),
        (["--gammas", "0,1", "--rich-phrases"], " --rich-phrases --gammas 0,1"),
        (["--data", "coco", "--drop"], " --data coco --drop floor"),
        (
            ["--data", "coco", "--drop", "each", "--phrases", "name"],
            " --data coco --drop each --phrases name",
        ),
        (["--only", "report", "--pairs", "3", "--host-index", "1", "--host-count", "2"], ""),
        (
            ["--data", "coco", "--nsr1k", "a=b", "--nsr1k", "c=d", "--scorers", "clip=x,pick"],
            " --data coco --nsr1k a=b --nsr1k c=d --scorers clip=x pick",
        ),
    ],
)
def test_the_command_of_a_report_leaves_out_what_is_default(given, command):
    parser = evaluate.study_parser()
    arguments = parser.parse_args([*given, "--out", "my study"])
    assert command_of(arguments) == f"reground-jax evaluate{command} --out 'my study'"
    again = parser.parse_args(shlex.split(command_of(arguments))[2:])
    untold = ("only", "pairs", "host_index", "host_count", "out")
    kept = {n: v for n, v in vars(arguments).items() if n not in untold}
    assert {n: v for n, v in vars(again).items() if n not in untold} == kept
    assert isinstance(default_arguments(), argparse.Namespace)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--gammas 0,2", "gamma is 2.0: give a fraction of the steps in 0..1"),
        ("--layouts 5000", "cannot use 5000 layouts: choose 1 to 1000"),
        ("--layouts many", "--layouts is many: give a whole number, at least 8"),
        ("--gate-scale 0", "--gate-scale is 0: give a number above 0"),
        ("--solver plsm", "solver 'plsm' is unknown: did you mean 'plms'?"),
        ("--only make", "step 'make' is unknown: it must be one of generate, score, report"),
        ("--pairs 0", "--pairs is 0: give a whole number, at least 1"),
        ("--rate fast", "--rate is fast: give TFLOP/s, a number above 0"),
        ("--wirings paralel", "wiring 'paralel' is unknown: did you mean 'parallel'?"),
        ("--data coco2017", "data 'coco2017' is unknown: did you mean 'coco'?"),
        ("--data coco", "--data coco needs --annotations, COCO's instances_*.json"),
        ("--drop", "--drop is for --data coco, not emoji: leave it out"),
        ("--data coco --annotations a --captions c --drop flor", "did you mean 'floor'?"),
        ("--data coco --annotations a --captions c --phrases names", "did you mean 'name'?"),
        ("--answers a.json", "out has no pairs/key.json: make the page with --pairs first"),
        ("--data coco --rich-phrases", "--rich-phrases is for --data emoji, not coco"),
        ("--scorers blip", "scorer 'blip' is unknown: did you mean 'clip'?"),
        ("--scorers probes=x", "scorer probes=x: the probes come with the package"),
        ("--scorers clip=./nowhere", "CLIP ./nowhere does not exist"),
        ("--scorers fid", "scorer fid needs the network: get https://"),
        ("--scorers fid=x", "scorer fid compares with photographs: give --photographs"),
        ("--seeds 0,1", "seeds are [0, 1], but the layouts of this data set have their own"),
        ("--host-index 2", "--host-index and --host-count go together: give both"),
    ],
)
def test_bad_requests_are_one_sentence_before_any_work(
    capsys, tmp_path, tiny_model_dir, options, message, monkeypatch
):
    monkeypatch.setattr(evaluate, "load", lambda *_, **__: pytest.fail("a model is loaded"))
    assert evaluated(tiny_model_dir, tmp_path / "out", *options.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("error: ") == 1
    assert not (tmp_path / "out").exists()


# ---- with a stand-in that draws what was asked for


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["conditions"]


def test_the_command_measures_what_a_model_draws(capsys, rendered, tmp_path, tiny_model_dir):
    out = tmp_path / "out"
    options = ["--layouts", "32", "--gammas", "1,0,1", "--pairs", "3"]
    assert evaluated(tiny_model_dir, out, *options) == 0
    assert capsys.readouterr().out == f"{out / 'report.md'}\n"
    rows = rows_of(out)
    assert len(rows) == 2 * 2 + 3 + 2  # nothing is dropped at gamma 0, and there is one model
    for row in rows:
        right, upside_down = row["gamma"] == 1, row["gamma"] == 0
        assert right and row["box"][0] > 0.9 and row["ap50"][0] > 0.8 or upside_down
        assert right or row["box"][0] < 0.6 and row["ap50"][0] < 0.5
    page = (out / "pairs/index.html").read_text("utf-8")
    assert page.count("<img ") == 6 and "sequential" not in page and "http" not in page
    key = json.loads((out / "pairs/key.json").read_text())
    assert {pair["left"] for pair in key["pairs"]} <= {"sequential", "parallel"}
    before = (out / "results.json").read_bytes()
    made = len(rendered)
    assert evaluated(tiny_model_dir, out, *options) == 0
    assert len(rendered) == made and (out / "results.json").read_bytes() == before


def test_answers_of_people_are_counted(capsys, rendered, tmp_path, tiny_model_dir):
    out = tmp_path / "out"
    options = ["--layouts", "8", "--gammas", "1", "--wirings", "sequential,parallel"]
    assert evaluated(tiny_model_dir, out, *options, "--pairs", "3") == 0
    capsys.readouterr()
    pairs = json.loads((out / "pairs/key.json").read_text())["pairs"]
    parallel = {
        str(p["pair"]): side for p in pairs for side in ("left", "right") if p[side] == "parallel"
    }
    files = [str(tmp_path / name) for name in ("all.json", "one.json", "wrong.json")]
    contents = parallel, {"2": "left"}, {"4": "left"}
    for file, content in zip(files, contents, strict=True):
        Path(file).write_text(json.dumps(content))
    assert evaluated(tiny_model_dir, out, "--answers", files[0]) == 0
    said = "sequential: 0 of 3 answers (0.0 %)\nparallel: 3 of 3 answers (100.0 %)\n"
    assert capsys.readouterr().out == said
    assert evaluated(tiny_model_dir, out, "--answers", files[0], "--answers", files[1]) == 0
    right = 3 + (pairs[1]["left"] == "parallel")
    assert f"parallel: {right} of 4 answers ({25 * right}.0 %)\n" in capsys.readouterr().out
    assert evaluated(tiny_model_dir, out, "--answers", files[2]) == 2
    assert "is no answer to the pairs of" in capsys.readouterr().err


def test_a_plan_says_what_is_to_be_made_and_makes_nothing(
    capsys, rendered, tmp_path, tiny_model_dir
):
    out = tmp_path / "out"
    options = ["--layouts", "16", "--gammas", "0,1", "--wirings", "sequential"]
    options += ["--unit-lines", "16"]
    assert evaluated(tiny_model_dir, out, *options, "--plan", "--scorers", "fid,probes") == 0
    said = capsys.readouterr().out
    assert not out.exists() and not rendered
    lines = [line.split() for line in said.splitlines()]
    assert lines[1][:2] == ["32", "32"] and "gligen, heldout, sequential, gamma 0, 1" in said
    assert "missing: scorer fid needs the network" in said and "scored by probes" in said
    assert evaluated(tiny_model_dir, out, *options) == 0
    capsys.readouterr()
    more = [*options[2:], "--layouts", "32", "--plan", "--rate", "0.001"]
    assert evaluated(tiny_model_dir, out, *more) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[1].split()[:2] == ["64", "32"] and "at 0.001 TFLOP/s" in said


def test_steps_alone_are_those_together(capsys, rendered, tmp_path, tiny_model_dir):
    options = ["--layouts", "32", "--gammas", "0,1", "--wirings", "sequential,parallel"]
    assert evaluated(tiny_model_dir, tmp_path / "whole", *options) == 0
    out = tmp_path / "out"
    assert evaluated(tiny_model_dir, out, *options, "--only", "report") == 2
    assert "lacks images: run the same command with --only generate" in capsys.readouterr().err
    assert evaluated(tiny_model_dir, out, *options, "--only", "score") == 0
    assert "156 of 156 images are not there yet" in capsys.readouterr().err
    hosts = [["--host-index", str(i), "--host-count", "2"] for i in range(2)]
    for host in hosts:
        assert evaluated(tiny_model_dir, out, *options, *host, "--only", "generate") == 0
    assert evaluated(tiny_model_dir, out, *options, *hosts[0]) == 0
    assert "run the same command once with --only report" in capsys.readouterr().err
    assert evaluated(tiny_model_dir, out, *options, "--only", "score") == 0
    assert evaluated(tiny_model_dir, out, *options, "--only", "report") == 0
    results = [json.loads((f / "results.json").read_text()) for f in (tmp_path / "whole", out)]
    assert results[0] | {"command": ""} == results[1] | {"command": ""}


# ---- killed at any moment


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_study_killed_at_random_has_the_same_results(tmp_path, tiny_model_dir, start, kills):
    def command(out: Path, seconds: float) -> list[str]:
        options = ["--layouts", "24", "--batch-size", "5", "--unit-lines", "5", "--gammas", "0,1"]
        stub = [sys.executable, "-m", "tests.evaluate_stub", str(seconds), "evaluate", *options]
        return [*stub, "--model", str(tiny_model_dir), "--out", str(out)]

    whole = tmp_path / "whole"
    code, errors = finish(start(command(whole, 0)))
    assert code == 0, errors
    dice, killed = random.Random(kills), tmp_path / "killed"
    for _ in range(kills):
        before = len(list(killed.rglob("*.*")))
        process = start(command(killed, 0.3))  # slow enough that no run comes to its end
        wait_for(process, lambda before=before: len(list(killed.rglob("*.*"))) > before)
        time.sleep(dice.uniform(0, 0.5))
        process.kill()
        finish(process)
    code, errors = finish(start(command(killed, 0)))
    assert code == 0, errors
    results = [(out / "results.json").read_bytes() for out in (whole, killed)]
    assert results[0].replace(str(whole).encode(), str(killed).encode()) == results[1]
    assert not list(killed.rglob(".*.part"))
    stored = [sorted(p.relative_to(out) for p in out.rglob("*.tar")) for out in (whole, killed)]
    assert stored[0] == stored[1]
    assert all((whole / name).read_bytes() == (killed / name).read_bytes() for name in stored[0])


@pytest.mark.slow
def test_the_command_measures_a_real_pipeline(tmp_path, tiny_model_dir):
    argv = ["evaluate", "--model", str(tiny_model_dir), "--layouts", "8", "--gammas", "0,1"]
    out = tmp_path / "out"
    assert main([*argv, "--steps", "1", "--batch-size", "8", "--no-cache", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["num_steps"] == 1
    # Without fusers both wirings are the same; images of noise show none of the layouts.
    zero = [r for r in results["conditions"] if r["gamma"] == 0 and r["cases"] == "heldout"]
    assert zero[0]["text"] == zero[1]["text"] and zero[0]["box"][0] < 0.5
