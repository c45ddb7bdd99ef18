"""The benchmarks count, time and compare what they claim to, at a tiny size."""

import dataclasses
import json
import re
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import approximate, estimate, guidance, operations, profile, scaling, startup
from benchmarks.__main__ import main
from benchmarks.checkpoints import SCHEDULER, diffusers_configs, write_checkpoint
from reground_jax import Pipeline
from reground_jax.bench.attention_shapes import attention_calls
from reground_jax.bench.cases import CASES, Denoising, Work, attention, generate, unet, vae
from reground_jax.bench.harness import (
    Case,
    Result,
    datasheet_peak,
    measure,
    peak_memory,
    report,
    table,
)
from reground_jax.bench.presets import PRESETS, layouts, preset_config, random_model
from reground_jax.bench.run import run
from reground_jax.config import UNetConfig
from reground_jax.convert.configs import noise_schedule, text_config, unet_config, vae_config
from reground_jax.convert.conversion import convert
from reground_jax.counter import INVARIANT, SCORES, step_macs, unet_macs, vae_decoder_macs
from reground_jax.model import read_model
from reground_jax.settings import Settings

STEPS = Settings(num_steps=4, gamma=0.5, solver="ddim")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_model(random_model("tiny"), devices=jax.devices()[:1])


# The harness


def test_cases_are_timed_in_turns_after_compilation_and_warm_up():
    calls = []

    def case(name: str) -> Case:
        def call(x):
            calls.append(name)
            time.sleep(0.01)
            return x

        def setup():
            time.sleep(0.05)  # not timed
            return (jnp.zeros(1),)

        return Case(name, "", call, setup)

    results = measure([case("a"), case("b")], repeats=3, warmup=2)
    assert calls == ["a", "b"] * 6  # the first of each, two to warm up, three to time
    assert [result.name for result in results] == ["a", "b"]
    for result in results:
        assert len(result.seconds) == 3
        assert 0.01 <= min(result.seconds) and result.first >= 0.01
        assert result.compiled == 0


def test_compilation_is_told_apart_from_running():
    def slow_to_compile(x):  # 200 tiny products in a row
        for _ in range(200):
            x = jnp.sin(x @ x)
        return x

    case = Case("c", "", jax.jit(slow_to_compile), lambda: (jnp.ones((4, 4)),))
    (result,) = measure([case], repeats=2)
    assert 0 < result.compiled <= result.first
    assert result.median < result.compiled


def test_rates_and_shares_follow_from_the_median():
    result = Result("r", "", 9.0, 7.0, (4.0, 1.0, 2.0), images=3, macs=5 * 10**9)
    facts = result.to_json({"measured": 20e9, "datasheet": None})
    assert facts["median_s"] == 2 and (facts["min_s"], facts["max_s"]) == (1, 4)
    assert facts["images_per_s"] == 1.5
    assert facts["tflops"] == 0.005  # 5 GMAC are 10 GFLOP, in 2 seconds
    assert facts["share_of_peak"] == {"measured": 0.25}
    assert "25.0" in report([result], {"measured": 20e9, "datasheet": None})


def test_the_table_is_in_columns():
    assert table([["a", "b"], ["long", "1"], ["c", "22"]]).splitlines() == [
        "a      b", "--------", "long   1", "c     22",
    ]  # fmt: skip


def test_a_device_has_the_peak_of_the_longest_name_that_fits():
    assert datasheet_peak("TPU v5 lite", "bfloat16") == 197e12
    assert datasheet_peak("TPU v5", "bfloat16") == 459e12
    assert datasheet_peak("NVIDIA H200", "bfloat16") == 989e12
    assert datasheet_peak("cpu", "float32") is None


def test_peak_memory_grows_with_what_is_touched():
    before = peak_memory()
    np.ones(before // 8 + 2**25).sum()  # more 8-byte floats than all memory used before
    assert peak_memory() > before + 2**26


# The cases


@pytest.mark.parametrize("name", list(CASES))
def test_every_benchmark_of_a_pipeline_gives_a_record(pipe, name, capsys):
    record = run(name, pipe, Work(STEPS), repeats=2)
    printed = capsys.readouterr().out
    assert json.loads(json.dumps(record)) == record
    assert record["results"] and record["peak_memory"]["process"] > 0
    assert record["environment"]["versions"]["jax"] == jax.__version__
    for result in record["results"]:
        assert result["name"] in printed
        assert len(result["seconds"]) == 2 and min(result["seconds"]) > 0
        assert (result["images_per_s"] is not None) == (name in ("generate", "vae"))
        assert (result["share_of_peak"] is None) == (name == "text")


def test_steps_and_runs_are_charged_what_the_counter_says(pipe):
    config = pipe.config.unet
    on, off = (
        sum(n for part, n in unet_macs(config, 8, 8, fusers=f).items() if part not in INVARIANT)
        for f in (True, False)
    )
    assert [case.macs for case in unet(pipe, Work(STEPS))] == [2 * on, 2 * on, 2 * off]
    decoder = vae_decoder_macs(pipe.config.vae, 8, 8)
    assert [case.macs for case in vae(pipe, Work(STEPS, batch=3))] == [3 * decoder]
    half, always = generate(pipe, Work(STEPS))
    assert always.macs - half.macs == 2 * 2 * (on - off)  # two of four steps, two branches


def test_the_attention_calls_of_a_step_are_those_that_are_counted():
    config = preset_config("sd14")
    counted, called = unet_macs(config.unet, 64, 48, max_boxes=20), Counter()
    for call, times in attention_calls(config, 64, 48, 2, 20).items():
        called[f"{call.kind}_scores"] += times * call.shape.macs
    assert called == {part: 2 * counted[part] for part in SCORES}


def test_attention_is_measured_on_the_shapes_of_the_unet(pipe):
    cases = attention(pipe, Work(STEPS))
    assert {case.name for case in cases} == {
        f"{kind} attention, {form}"
        for kind in ("self", "fuser", "cross")
        for form in ("plain", "lean")
    }
    fuser = next(case for case in cases if case.name == "fuser attention, lean")
    q, k, v = fuser.setup()
    assert q.shape == (2, 64, 4, 4) and k.shape == v.shape == (2, 94, 4, 4)  # 64 + 30 keys
    assert fuser.call(q, k, v).shape == q.shape


def test_a_batch_that_does_not_divide_is_refused(pipe):
    two = dataclasses.replace(
        pipe,
        programs=dataclasses.replace(
            pipe.programs,
            hardware=dataclasses.replace(pipe.programs.hardware, devices=pipe.devices * 2),
        ),
    )
    with pytest.raises(ValueError, match="the batch is 3 on 2 devices: use a multiple of 2"):
        run("vae", two, Work(STEPS, batch=3), repeats=1)


# Presets and checkpoints


def test_presets_have_the_sizes_that_they_claim():
    assert preset_config("sd14").unet == UNetConfig()
    path = Path(__file__).parent.parent / "reground_jax/training/configs/emoji64"
    fields = json.loads((path / "text_to_image.json").read_text())["model"]["unet"]
    emoji = UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    ours = preset_config("emoji").unet
    assert ours == UNetConfig(**vars(emoji) | {"grounding": "text"})
    assert len(set(layouts(5))) == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_configs_in_diffusers_form_mean_the_preset(preset):
    config = preset_config(preset)
    files = json.loads(json.dumps(diffusers_configs(config)))
    assert unet_config(files["unet"]) == config.unet
    assert vae_config(files["vae"]) == config.vae
    assert text_config(files["text_encoder"]) == config.text_encoder.network
    assert noise_schedule(SCHEDULER) == config.schedule


def test_a_written_checkpoint_converts_and_nothing_in_it_is_trivial(tmp_path):
    write_checkpoint(tmp_path / "diffusers", "tiny")
    info = convert(tmp_path / "diffusers", tmp_path / "ours")
    assert info["dtype"] == "float16"
    model = read_model(tmp_path / "ours")
    assert model.config == preset_config("tiny")
    for leaf in jax.tree.leaves(model.params):
        assert np.isfinite(leaf).all() and (leaf != 0).any() and (leaf != 1).any()


# Programs of `python -m benchmarks`


def test_what_no_step_changes_is_out_of_the_step():
    counts = operations.count("tiny")
    products = {name: found["matrix products"] for name, found in counts.items()}
    blocks, resnets = 4, 8
    # Text K/V, grounding's linear layer and its K/V; the time embedding's two layers and each
    # resnet's own; three layers of the position net.
    hoisted = 3 * blocks + 2 + resnets + 3
    assert products["before"] - products["now, sequential"] == hoisted
    # Four projections that read the same features are stored as two and become one.
    assert products["now, sequential"] - products["now, parallel"] == blocks
    assert counts["now, parallel"]["all"] < counts["now, sequential"]["all"]
    assert counts["now, sequential"]["all"] < counts["before"]["all"]
    assert len({found["convolutions"] for found in counts.values()}) == 1


def test_a_profile_charges_operations_to_the_parts_of_the_counter(pipe):
    record = profile.measure(pipe, Work(STEPS))
    spent, gmacs = record["milliseconds"], record["gmac"]
    assert set(spent) - {profile.OTHER} == set(gmacs)  # every part is there, and no unknown one
    assert min(spent.values()) > 0
    shown = profile.show(record)
    assert all(part in shown for part in spent)


def test_an_operation_is_charged_until_the_next_one_starts():
    """All of a step is charged: the thread pool's work, too, whose events end at once."""

    def event(name: str | None, start: int, duration: int) -> SimpleNamespace:
        stats = [] if name is None else [("hlo_op", name)]
        return SimpleNamespace(stats=stats, start_ns=start, duration_ns=duration)

    ends_at_once, waits = event("dot.1", 100, 1), event("add.2", 700, 200)
    events = [event("while.3", 90, 900), waits, ends_at_once, event(None, 0, 5000)]
    lines = [SimpleNamespace(events=events)]
    times = profile.operation_times(SimpleNamespace(planes=[SimpleNamespace(lines=lines)]))
    assert times == {"dot.1": pytest.approx(600e-9), "add.2": pytest.approx(290e-9)}


def test_diffusers_and_we_agree_and_the_last_line_has_the_ratios(tmp_path, capfd):
    out = tmp_path / "peer.json"
    argv = ["peer", "--preset", "tiny", "--steps", "2", "--repeats", "1", "--out", str(out)]
    assert main(argv) == 0
    last = capfd.readouterr().out.strip().splitlines()[-1]
    pattern = r"ratio step (\d+\.\d+) run (\d+\.\d+) memory (\d+\.\d+)"
    assert (match := re.fullmatch(pattern, last))
    record = json.loads(out.read_text())
    (measured,) = record["repetitions"]
    theirs, ours = measured["theirs"], measured["ours"]
    for value, kind in zip(match.groups(), ("step", "run", "memory"), strict=True):
        assert float(value) == pytest.approx(theirs[kind] / ours[kind], abs=1e-3)
    assert 0 < record["errors"]["latents"] < 1e-5 and record["errors"]["image"] < 1e-5
    assert record["command"] == f"python -m benchmarks {' '.join(argv)}"


@pytest.mark.slow
def test_throughput_of_both_sides_is_shown_by_batch_size(tmp_path, capfd):
    out = tmp_path / "throughput.json"
    argv = ["throughput", "--preset", "tiny", "--dtype", "float32", "--steps", "4"]
    assert main([*argv, "--batch-size", "2", "--repeats", "1", "--out", str(out)]) == 0
    record, shown = json.loads(out.read_text()), capfd.readouterr().out
    for batch in ("1", "2"):
        for side, steps in (("ours", 3), ("theirs", 2)):
            (measured,) = record["times"][batch][side]
            assert len(measured["seconds"]) == steps + 2
            run = measured["seconds"]["run, gamma 0.3"]
            assert f" {run:.4f} " in shown and f" {int(batch) / run:.3f} " in shown


def test_a_disagreement_is_the_exit_code(tmp_path, monkeypatch):
    from benchmarks import peer

    measured = {"step": 1.0, "run": 2.0, "memory": 3, "share": 0.5}
    record = {
        "options": {"dtype": "float32"}, "errors": {"latents": 0.5, "image": 1e-6},
        "repetitions": [{"ours": measured, "theirs": measured}],
        "ratios": {"sequential": [dict.fromkeys(("step", "run", "memory"), 1.0)]},
    }  # fmt: skip
    monkeypatch.setattr(peer, "prepare", lambda *_: {})
    monkeypatch.setattr(peer, "compare", lambda *_: record)
    assert main(["peer", "--preset", "tiny"]) == 1
    record["errors"]["latents"] = 1e-6
    assert main(["peer", "--preset", "tiny"]) == 0


@pytest.mark.slow
def test_a_warm_cache_compiles_nothing_at_start_up():
    record = startup.measure("tiny", "float32", repeats=1)
    (warm,) = record["warm"]
    assert record["cold"]["hits"] == 0 and record["cold"]["misses"] > 0
    assert warm["misses"] == 0 and warm["hits"] == record["cold"]["misses"]
    assert warm["seconds"]["compile or read"] < record["cold"]["seconds"]["compile or read"]
    assert "warm cache" in startup.show(record)


@pytest.mark.slow
def test_approximate_options_are_compared_with_the_first_by_work_and_quality(monkeypatch):
    options = (
        {"solver": "plms", "num_steps": 4},
        {"solver": "plms", "num_steps": 4},
        {"solver": "dpmpp_2m", "num_steps": 4, "guidance_interval": (0.5, 1.0)},
    )
    monkeypatch.setattr(approximate, "OPTIONS", options)
    record = approximate.measure(1.0, layouts=25)
    same, _, other = record["rows"]
    assert [row["forwards"] for row in record["rows"]] == [10, 10, 6]
    assert record["rows"][1]["differences"] == {"box": (0, 0, 0), "text": (0, 0, 0)}
    assert other["differences"]["box"][0] == pytest.approx(other["box"][0] - same["box"][0])
    assert "0.5..1" in approximate.show(record)


def test_the_estimate_on_paper_follows_from_published_counts():
    record = estimate.estimate("sd14", Settings(num_steps=50, gamma=0.3))
    # GMAC: GLIGEN 568.4 in 15 steps, one of which PLMS evaluates twice, 401.6 in 35, both branches,
    # and the decoder's 1257.
    published = 2 * (2 * (16 * 568.4 + 35 * 401.6) + 1257) / 1000
    assert 0.992 * published < record["image_tflop"] < published  # less what is hoisted
    for row in record["rows"]:
        seconds = record["image_tflop"] / (row["share"] * row["peak_tflops"])
        assert row["images_per_hour"] == pytest.approx(row["chips"] * 3600 / seconds)
        assert row["dollars_per_million"] == pytest.approx(1e6 * row["price"] * seconds / 3600)
        assert f"{row['dollars_per_million']:,.0f}" in estimate.show(record)


def test_the_estimate_on_paper_takes_only_what_was_compiled():
    with pytest.raises(ValueError, match=r"width is 1024, but .*-tpu-aot-sd14 was compiled for"):
        estimate.estimate("sd14", Settings(width=1024))
    with pytest.raises(ValueError, match="guidance on or off"):
        estimate.estimate("sd14", Settings(guidance_scale=1.0))
    with pytest.raises(
        ValueError, match="no record of the preset 'tiny'.*tpu-aot --full --preset tiny"
    ):
        estimate.estimate("tiny", Settings())


@pytest.mark.slow
def test_devices_need_nothing_of_each_other():
    record = scaling.measure("tiny", "float32", steps=2, repeats=1)
    assert [row["devices"] for row in record["rows"]] == [1, 2, 4, 8]
    for row in record["rows"]:
        assert row["collectives"] == []
        assert row["difference"] < 1e-4  # of values in 0..1; another batch is another program
    assert "images each" in scaling.show(record)


def test_operations_traced_for_attention_guidance_are_those_of_the_counter(pipe):
    """An update goes forward to the last map, and back, which costs as much as forward or more."""
    settings = Settings(num_steps=2, solver="ddim", wiring="sequential", guidance_scale=1.0)
    found = guidance._gmacs(Denoising.of(pipe, Work(settings)), fusers=True)
    step = step_macs(pipe.config.unet, guided=False) / 1e9
    assert found["step"] == pytest.approx(step, rel=1e-6)
    assert all(step < found[method] < 3 * step for method in guidance.METHODS)
