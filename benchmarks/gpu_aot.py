"""What XLA's compiler for NVIDIA lays out for our programs, on a machine without a GPU.

Nothing runs, and there is no cost model: no speed can be read from any of it. Bytes, which library
calls there are and which attention forms were chosen are facts of the compiled programs. Without a
card nothing is tuned, and whether cuDNN has an engine for each call is known only on one.

Needs packages that `pip install` would not put on such a machine: see benchmarks/README.md.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax

from benchmarks.tpu_aot import Work
from reground_jax.bench.aot import Compiled, compiled, sampling_calls
from reground_jax.bench.harness import table
from reground_jax.bench.presets import preset_config
from reground_jax.hardware import Hardware
from reground_jax.networks.attention import choose_backend
from reground_jax.settings import Settings

PACKAGES = ("jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12")
LIBRARY_CALL = re.compile(r'custom_call_target="(__cu[^"]+)"')
MIB = 2**20


class GPU(NamedTuple):
    """By NVIDIA's datasheets."""

    name: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units of each
    clock: float  # GHz
    shared: int  # KiB of shared memory per core; a block may use 1 KiB less
    cache: int  # MiB
    memory: int  # GiB
    bandwidth: float  # of the memory, bytes per second

    @property
    def target(self) -> str:
        """XLA's GpuTargetConfigProto, as much of it as compiling takes."""
        return f"""
            gpu_device_info {{
              cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]} }}
              core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock}
              device_memory_size: {self.memory * 2**30} memory_bandwidth: {self.bandwidth:.0f}
              l2_cache_size: {self.cache * 2**20}
              shared_memory_per_core: {self.shared * 2**10} shared_memory_per_block: 49152
              shared_memory_per_block_optin: {(self.shared - 1) * 2**10}
              threads_per_warp: 32 threads_per_core_limit: 2048 threads_per_block_limit: 1024
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{self.name}"
        """


GPUS = {
    "h100": GPU("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 228, 50, 80, 3.35e12),
    "a100": GPU("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 164, 40, 80, 2.04e12),
}


def measure(preset: str, settings: Settings, images: int, dtype: str) -> dict[str, Any]:
    """The programs of a run on each GPU, for `images`."""
    _load_libraries()
    work = Work(preset_config(preset), settings, images)
    return {
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": settings.to_json(),
        "images": images,
        "dtype": dtype,
        "gpus": {name: _gpu(name, work, dtype) for name in GPUS},
    }


def _load_libraries() -> None:
    """Raises ValueError if a package is missing."""
    for name in PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise ValueError(
                f"gpu-aot needs {name}: benchmarks/README.md says how to install it"
            ) from error
    spec = importlib.util.find_spec("nvidia")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations)))
    flags = f"--xla_gpu_cuda_data_dir={folder}/cuda_nvcc --xla_gpu_autotune_level=0"
    flags += " --xla_gpu_enable_triton_gemm=false"  # untuned, it does not compile
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu")
    for library in (folder / "cudnn/lib").glob("libcudnn.so.*"):  # XLA opens it by its name alone
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _gpu(name: str, work: Work, dtype: str) -> dict[str, Any]:
    from jax.experimental import topologies

    gpu = GPUS[name]
    devices = topologies.get_topology_desc(
        name, platform="cuda", topology="1x1x1", target_config=gpu.target
    ).devices
    hardware = Hardware(tuple(devices), dtype, None, "shard_map")
    programs = {}
    # JAX's own check of cuDNN's limits asks for this machine's card, which there is none of.
    own = "jax._src.cudnn.fused_attention_stablehlo.check_compute_capability"
    with mock.patch(own, lambda least: gpu.capability >= tuple(map(int, least.split(".")))):
        for title, call in sampling_calls(
            work.config, hardware, work.settings, work.images
        ).items():
            print(f"{name}: {title}", file=sys.stderr, flush=True)
            programs[title] = _program(compiled(call))
    forms = Counter[str]()
    for call, times in work.attention_calls().items():
        branches, queries, keys, heads, width = call.shape
        q = branches, queries, heads, width
        capability = float(f"{gpu.capability[0]}.{gpu.capability[1]}")
        forms[choose_backend("gpu", dtype, q, keys, capability)] += times
    return {"attention_forms": dict(forms), "programs": programs}


def _program(made: Compiled) -> dict[str, Any]:
    calls = Counter[str]()
    for operation, times, _ in made.program.executed():
        if found := LIBRARY_CALL.search(operation.line):
            calls[found[1]] += times
    return {
        "compile_s": made.seconds,
        "bytes": made.sizes(),
        "library_calls": dict(calls),
    }


def show(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    lines = [
        f"Compiled with {versions}; not run and not tuned: {record['images']} images, "
        f"{record['dtype']}. Bytes and calls are facts of the programs; no speed follows from them."
    ]
    kinds = ("arguments", "output", "temporaries", "all")
    for name, found in record["gpus"].items():
        rows = [["MiB", *kinds, "calls of libraries", "compiled in s"]]
        for title, program in found["programs"].items():
            calls = (f"{n} {call}" for call, n in program["library_calls"].items())
            row = [title, *(f"{program['bytes'][kind] / MIB:.0f}" for kind in kinds)]
            rows.append([*row, ", ".join(calls) or "none", f"{program['compile_s']:.0f}"])
        forms = ", ".join(f"{n} {form}" for form, n in found["attention_forms"].items())
        lines += ["", f"{GPUS[name].name}: attention calls of a step: {forms}", table(rows)]
    return "\n".join(lines)
