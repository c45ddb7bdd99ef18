"""Programs compiled for TPUs that are not here, and reading what the compiler wrote."""

import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from reground_jax.bench import aot, chips, hlo
from reground_jax.bench.presets import preset_config
from reground_jax.hardware import Hardware
from reground_jax.networks.attention import attention_for
from reground_jax.settings import Settings
from tests.marks import slow

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the extra aot, is not installed"
)


def program(function, *arguments) -> hlo.Program:
    return hlo.Program.of(jax.jit(function).lower(*arguments).compile().as_text())


def loops(x, passes):
    """3 x 4 products in loops of known length, inside one whose length is an argument."""
    inner = lambda _, x: jax.lax.fori_loop(0, 4, lambda _, x: jnp.sin(x @ x), x)  # noqa: E731
    return jax.lax.fori_loop(0, passes, lambda _, x: jax.lax.fori_loop(0, 3, inner, x), x)


def test_known_loops_multiply_and_the_loop_over_the_steps_does_not():
    read = program(loops, jnp.ones((256, 256)), 5)
    runs = [(times, stepped) for made, times, stepped in read.executed() if "dot" in made.line]
    assert runs == [(12, True)]


def test_a_collective_is_counted_with_its_bytes():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    text = """HloModule m

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = (f32[8,4]{1,0}, bf16[3]{0}) all-reduce-start(%a), to_apply=%add
  ROOT %c = f32[8,4]{1,0} copy(%a), backend_config={"estimated_cycles":"30"}
}
"""
    read = hlo.Program.of(text)
    assert read.collectives() == {"all-reduce": {"count": 1, "bytes": 8 * 4 * 4 + 3 * 2}}
    inside, outside = read.cycles()
    assert not inside and outside == {hlo.OTHER: 30}
    alone = jax.shard_map(
        lambda x: 2 * x, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")
    )
    assert program(alone, jnp.ones((4, 2))).collectives() == {}


def test_a_gradient_belongs_to_the_part_that_it_is_of():
    path = "jit(step)/transpose(jvp(unet))/down_0/jvp(transformer_0)/block_0/fuser/scores/dot"
    assert hlo.part_of(hlo.scopes(path)) == "fuser_scores"


def test_an_unknown_topology_is_refused_by_its_name():
    with pytest.raises(ValueError, match="TPU 'v5'.* is unknown: did you mean 'v5e'"):
        chips.tpu_devices("v5:2x2")


def test_without_libtpu_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(chips.platform, "system", lambda: "Linux")
    monkeypatch.setattr(chips.platform, "machine", lambda: "x86_64")
    with pytest.raises(ValueError, match=r"needs libtpu, .*pip install 'reground-jax\[aot\]'"):
        chips.tpu_devices("v5e:2x2")
    monkeypatch.setattr(chips.platform, "machine", lambda: "arm64")
    with pytest.raises(ValueError, match="needs libtpu, which is for Linux on x86-64"):
        chips.tpu_devices("v5e:2x2")


@needs_libtpu
@pytest.mark.aot
@pytest.mark.parametrize("mapper", ["shard_map", slow("pmap")])
def test_sampling_over_sixteen_chips_has_no_collective(mapper):
    hardware = Hardware(chips.tpu_devices("v5e:4x4"), "bfloat16", None, mapper)
    settings = Settings(solver="ddim", eta=0.5)
    calls = aot.sampling_calls(preset_config("tiny"), hardware, settings, 1)
    assert len(calls) == 5
    calls["block"] = aot.transformer_call(preset_config("tiny"), hardware, settings, 1)
    for name, call in calls.items():
        compiled = aot.compiled(call)
        assert compiled.program.collectives() == {}, name
        assert compiled.bytes > compiled.arguments > 0
    inside, _ = aot.compiled(calls["steps with fusers"]).program.cycles()
    assert {"fuser_scores", "self_scores", "cross_scores", "resnets"} <= set(inside)
    without, _ = aot.compiled(calls["steps without"]).program.cycles()
    assert "fuser_scores" not in without and "cross_scores" in without


@needs_libtpu
@pytest.mark.aot
@pytest.mark.parametrize("chip", chips.CHIPS)
@pytest.mark.parametrize(
    ("queries", "keys", "width"),
    [(4096, 4096, 40), (4096, 4126, 40), (1024, 1054, 80), (256, 286, 160)],
)
def test_mosaic_takes_the_pallas_form(chip, queries, keys, width):
    sharding = jax.sharding.SingleDeviceSharding(chips.tpu_devices(chips.CHIPS[chip].topology)[0])
    q, k, v = (
        jax.ShapeDtypeStruct((2, length, 8, width), jnp.bfloat16, sharding=sharding)
        for length in (queries, keys, keys)
    )
    compiled = aot.compiled((jax.jit(attention_for("tpu", "pallas")), (q, k, v)))
    kernels = [o for o, *_ in compiled.program.executed() if "tpu_custom_call" in o.line]
    assert len(kernels) == 1


@needs_libtpu
@pytest.mark.aot
@pytest.mark.parametrize("keys", [4096, 4126])
def test_keys_lead_the_logits_in_memory(keys):
    """XLA has another mind for multiples of 128, which costs 1.8 times the instructions on v6e."""
    sharding = jax.sharding.SingleDeviceSharding(chips.tpu_devices("v6e:2x2")[0])
    q, k, v = (
        jax.ShapeDtypeStruct((1, length, 2, 40), jnp.bfloat16, sharding=sharding)
        for length in (4096, keys, keys)
    )
    compiled = aot.compiled((jax.jit(attention_for("tpu", "lean")), (q, k, v)))
    shapes = {operation.shape for operation, *_ in compiled.program.executed()}
    logits = set(re.findall(rf"f32\[(512,{keys}|{keys},512)\]{{([01],[01])", " ".join(shapes)))
    assert logits in ({(f"512,{keys}", "0,1")}, {(f"{keys},512", "1,0")})


@needs_libtpu
@pytest.mark.aot
def test_a_machine_does_not_look_like_a_tpu_host_afterwards():
    before = dict(os.environ)
    assert len(chips.tpu_devices("v5e:4x4")) == 16
    assert dict(os.environ) == before


@needs_libtpu
@pytest.mark.aot
def test_a_topology_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="libtpu has no topology 'v5e:3x3'"):
        chips.tpu_devices("v5e:3x3")
