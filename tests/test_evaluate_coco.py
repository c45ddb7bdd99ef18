"""`reground-jax evaluate --data coco` on the built-in world in COCO's form, with a stand-in for the
model: oracles, which know the answers, and the options that are COCO's."""

import json
from pathlib import Path

import pytest
from PIL import Image

from reground_jax.evaluation.data_sets.export import export_coco
from reground_jax.evaluation.scorer import Metric, Scorer
from reground_jax.evaluation.scorers.detections import Detection
from reground_jax.evaluation.statistics import mean
from tests.data_sets import write_nsr1k
from tests.evaluating import evaluated, oracle, write_results
from tests.renders import renders


def answers(shift: int):
    """A detector that finds what the layout of the case `shift` places on asks for."""

    def find(images, cases):
        found = []
        for case in [*cases[shift:], *cases[:shift]]:
            objects = [thing for thing in case.facts["objects"] if thing["boxed"]]
            found.append([Detection(t["category"], 0.9, t["box"]) for t in objects])
        return found

    return find


@pytest.fixture
def exported(tmp_path) -> list[str]:
    """Options for the first held-out layouts in COCO's form, with renders as photographs."""
    images, cases = renders()
    export_coco(tmp_path / "coco", cases, images)
    names = {"--annotations": "instances.json", "--captions": "captions.json"}
    files = [word for o, f in names.items() for word in (o, str(tmp_path / "coco" / f))]
    return ["--data", "coco", *files, "--photographs", str(tmp_path / "coco/images"), "--drop"]


def test_oracles_through_the_whole_command(
    rendered, tmp_path, tiny_model_dir, exported, monkeypatch
):
    from reground_jax.cli import data_sets

    monkeypatch.setitem(data_sets.SCORERS, "clip", lambda *_: oracle("right", answers(0)))
    monkeypatch.setitem(data_sets.SCORERS, "pick", lambda *_: oracle("wrong", answers(1)))
    files = write_nsr1k(tmp_path)
    options = ["--gammas", "0,1", "--wirings", "sequential,parallel"]
    for kind in ("counting", "spatial"):
        options += ["--nsr1k", f"{files[f'gpt4.{kind}']}={files[f'{kind}.val']}"]
    scorers = ["--scorers", "clip,pick,detector=probe"]
    assert evaluated(tiny_model_dir, tmp_path / "out", *exported, *options, *scorers) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    prompts = [row for row in results["conditions"] if row["cases"].startswith("nsr1k")]
    assert len(prompts) == 4
    for row in prompts:
        assert row["right.ap50"] == [1, 1, 1]  # of what detectors know: not of the nightstand
        if row["cases"] == "nsr1k-spatial":
            assert row["right.spatial"] == [1, 1, 1] and row["right.counting"] is None
        else:  # one layout of three has a dog too few; a comparison is worth 1 of 2, or of 1
            assert row["right.counting"][0] == pytest.approx(4 / 6, abs=1e-5)
            assert row["right.counting_clean"][0] == pytest.approx(4 / 5, abs=1e-5)
    for row in results["conditions"]:
        if row in prompts:
            continue
        assert row["right.ap50"] == [1, 1, 1] and row["right.ap"] == [1, 1, 1]
        assert row["wrong.ap50"][0] < 0.25
        assert (row["ap50"][0] > 0.8) == (row["gamma"] == 1)
        assert row["counting"] is None and row["spatial"] is None
    references = {(r["cases"], r["method"]): r for r in results["references"]}
    assert references["coco", "photographs"]["ap50"][0] > 0.9
    assert references["coco", "other layouts"]["right.ap50"][0] < 0.25
    assert {cases for cases, _ in references} == {"coco", "dropped", "nsr1k-counting"}  # not of one


def test_the_choice_of_rules_is_made_on_the_sequential_wiring_and_kept(
    capsys, rendered, tmp_path, tiny_model_dir, exported, monkeypatch
):
    from reground_jax.cli import data_sets

    def flat(name: str) -> Scorer:
        score = Metric(name, "", mean("score"))
        return Scorer(name, "1", lambda images, cases: [{"score": 31.0} for _ in cases], (score,))

    monkeypatch.setitem(data_sets.SCORERS, "clip", lambda *_: flat("clip"))
    out = tmp_path / "out"
    same = [*exported, "--gammas", "0.1,1", "--scorers", "clip,detector=probe"]
    alone = [*same, "--wirings", "sequential", "--calibrate"]
    assert evaluated(tiny_model_dir, out, *same, "--calibrate") == 2
    assert "--calibrate is for --wirings sequential alone" in capsys.readouterr().err
    assert evaluated(tiny_model_dir, out, *alone) == 0
    chosen = json.loads((out / "calibration.json").read_text())
    assert chosen["clip"]["chosen"]["clip"] == "clip"
    assert evaluated(tiny_model_dir, out, *same) == 0
    results = json.loads((out / "results.json").read_text())
    rules = results["scorers"]["detector"]["rules"]
    cell = chosen["ap"]["chosen"]
    assert {name: rules[name] for name in ("truth", "unasked", "least_area")} == {
        name: cell[name] for name in ("truth", "unasked", "least_area")
    }
    assert evaluated(tiny_model_dir, out, *alone) == 2
    assert "has scores of the parallel wiring: calibrate before" in capsys.readouterr().err


def test_layouts_and_images_are_exported_for_other_detectors(rendered, tmp_path, tiny_model_dir):
    options = ["--layouts", "8", "--gammas", "0,1", "--wirings", "sequential"]
    out, first, second = (tmp_path / name for name in ("out", "layouts", "images"))
    assert evaluated(tiny_model_dir, out, *options, "--export", str(first)) == 0
    assert sorted(path.name for path in first.iterdir()) == ["captions.json", "instances.json"]
    assert not out.exists()
    assert evaluated(tiny_model_dir, out, *options, "--only", "generate") == 0
    assert evaluated(tiny_model_dir, out, *options, "--export", str(second)) == 0
    images = json.loads((second / "instances.json").read_text())["images"]
    assert len(images) == len(list((second / "images").iterdir())) == 8 * 2 + 1
    (second / "found.json").write_text("[]")
    found = ["--scorers", f"probes,detections={second / 'found.json'}"]
    assert evaluated(tiny_model_dir, out, *options, *found) == 2  # "ap50" is the probes', too


def test_the_exported_world_has_the_average_precision_of_the_built_in_one(
    rendered, tmp_path, tiny_model_dir
):
    """COCO's rules and file forms against the built-in scorer, on the same images."""
    same = ["--layouts", "32", "--gammas", "0.3,1", "--wirings", "sequential"]
    out, layouts, world = (tmp_path / name for name in ("out", "layouts", "world"))
    assert evaluated(tiny_model_dir, out, *same, "--export", str(layouts)) == 0
    assert evaluated(tiny_model_dir, out, *same) == 0
    assert evaluated(tiny_model_dir, out, *same, "--export", str(world)) == 0
    write_results(world)
    files = ["--annotations", str(layouts / "instances.json")]
    files += ["--captions", str(layouts / "captions.json")]
    scorers = ["--scorers", f"detector=probe,detections={world / 'results.json'}"]
    other = tmp_path / "other"
    assert evaluated(tiny_model_dir, other, "--data", "coco", *files, *same, *scorers) == 0
    own, theirs = (
        {
            row["gamma"]: row
            for row in json.loads((folder / "results.json").read_text())["conditions"]
            if row["cases"] in ("heldout", "coco")
        }
        for folder in (out, other)
    )
    assert own[1.0]["ap50"][0] > 0.9 > 0.5 > own[0.3]["ap50"][0]
    for gamma, row in theirs.items():
        assert row["ap50"][0] == pytest.approx(own[gamma]["ap50"][0], abs=0.005)
        assert row["detector2.ap50"] == row["ap50"] and row["detector2.ap"] == row["ap"]


def test_photographs_are_exported_too_and_found_again(
    rendered, tmp_path, tiny_model_dir, exported, monkeypatch
):
    from reground_jax.evaluation.data_sets import coco

    monkeypatch.setattr(coco, "LEAST_TOLD", 2)
    files = write_nsr1k(tmp_path)
    folder = Path(exported[exported.index("--photographs") + 1])
    for number, image in zip((70, 80), renders()[0][:, :, ::-1], strict=False):
        Image.fromarray(image).save(folder / f"{number:012}.png")
    options = [*exported, "--nsr1k", f"{files['gpt4.counting']}={files['counting.val']}"]
    options += ["--gammas", "1", "--wirings", "sequential"]
    out, world = tmp_path / "out", tmp_path / "world"
    assert evaluated(tiny_model_dir, out, *options, "--scorers", "detector=probe") == 0
    assert evaluated(tiny_model_dir, out, *options, "--scorers", "", "--export", str(world)) == 0
    write_results(world)
    both = f"detector=probe,detections={world / 'results.json'}"
    assert evaluated(tiny_model_dir, out, *options, "--scorers", both) == 0
    results = json.loads((out / "results.json").read_text())
    rows = [*results["conditions"], *results["references"]]
    assert {("coco", "photographs"), ("dropped", "photographs")} <= {
        (row["cases"], row["method"]) for row in rows
    }
    for row in rows:
        assert row["detector2.ap50"] == row["ap50"] and row["detector2.ap"] == row["ap"]
    own, theirs = (results["scorers"][name] for name in ("detector", "detector2"))
    assert own["rules"] == theirs["rules"]
    assert own["threshold_photographs"] == theirs["threshold_photographs"] == 2
    # Without the photographs, nothing is chosen on them.
    kept = len(list((world / "images").iterdir())) - 2
    found = json.loads((world / "results.json").read_text())
    found = [detection for detection in found if detection["image_id"] <= kept]
    (world / "results.json").write_text(json.dumps(found))
    assert evaluated(tiny_model_dir, out, *options, "--scorers", both) == 0
    theirs = json.loads((out / "results.json").read_text())["scorers"]["detector2"]
    assert theirs["rules"]["threshold"] == 0.5 and "threshold_photographs" not in theirs


def test_the_way_of_dropping_and_the_phrases_are_chosen(
    rendered, tmp_path, tiny_model_dir, exported
):
    out, *words = tmp_path / "out", *exported, "--gammas", "1", "--scorers", "detector=probe"
    for how in ("floor", "ceil", "each"):  # in one folder
        same = [*words[:-4], how, *words[-4:], "--wirings", "sequential"]
        assert evaluated(tiny_model_dir, out, *same) == 0
    lines = {path.stem: path.read_text().splitlines() for path in (out / "cases").iterdir()}
    assert set(lines) == {"coco", "dropped", "dropped-ceil", "dropped-each"}
    dropped = [lines[name] for name in sorted(lines)[1:]]
    assert len({len(found) for found in dropped}) == 1 and len(set(map(str, dropped))) == 3
    assert '"a ' in lines["coco"][0]
    named = tmp_path / "named"
    assert evaluated(tiny_model_dir, named, *words, "--phrases", "name") == 0
    facts = json.loads((named / "results.json").read_text())
    assert facts["cases"]["coco"]["phrases"] == "name" and " --phrases name" in facts["command"]
    phrases = json.loads((named / "cases/coco.jsonl").read_text().splitlines()[0])["phrases"]
    assert phrases and not any(phrase.startswith("a ") for phrase in phrases)


def test_the_threshold_for_counting_is_chosen_on_photographs(
    capsys, rendered, tmp_path, tiny_model_dir, exported, monkeypatch
):
    from reground_jax.cli import data_sets
    from reground_jax.evaluation.data_sets import coco

    def find(images, cases):  # finds all with .62, and a dog that is not there with .3
        objects = [[t for t in case.facts["objects"] if t["boxed"]] for case in cases]
        found = [[Detection(t["category"], 0.62, t["box"]) for t in things] for things in objects]
        return [[*one, Detection("dog", 0.3, (0.0, 0.0, 0.2, 0.2))] for one in found]

    monkeypatch.setattr(coco, "LEAST_TOLD", 2)
    monkeypatch.setitem(data_sets.SCORERS, "pick", lambda *_: oracle("oracle", find))
    files = write_nsr1k(tmp_path)
    nsr1k = ["--nsr1k", f"{files['gpt4.counting']}={files['counting.val']}"]
    options = [*exported[:-1], *nsr1k, "--gammas", "1", "--wirings", "sequential"]
    options += ["--scorers", "pick,detector=probe"]

    def rules() -> list[dict]:
        scorers = json.loads((tmp_path / "out/results.json").read_text())["scorers"]
        return [scorers[name] for name in ("oracle", "detector")]

    assert evaluated(tiny_model_dir, tmp_path / "out", *options) == 0
    assert [found["rules"]["threshold"] for found in rules()] == [0.5, 0.5]
    report = (tmp_path / "out/report.md").read_text("utf-8")
    assert "an object that oracle finds is present from a score of 0.5, not chosen on" in report
    folder = Path(options[options.index("--photographs") + 1])
    images, _ = renders()
    for number, image in zip((70, 80), images, strict=False):
        Image.fromarray(image).save(folder / f"{number:012}.png")
    assert evaluated(tiny_model_dir, tmp_path / "out", *options, "--only", "report") == 2
    assert "photographs-told: run the same command with --only score" in capsys.readouterr().err
    assert evaluated(tiny_model_dir, tmp_path / "out", *options) == 0
    chosen = rules()[0]
    assert chosen["rules"]["threshold"] == 0.35 and chosen["threshold_photographs"] == 2
    report = (tmp_path / "out/report.md").read_text("utf-8")
    assert "from a score of 0.35, which gives the most right counts on 2 photographs" in report
    before = (tmp_path / "out/results.json").read_bytes()
    assert evaluated(tiny_model_dir, tmp_path / "out", *options) == 0
    assert (tmp_path / "out/results.json").read_bytes() == before
