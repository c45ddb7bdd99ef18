"""LoRA files whose names, shapes or metadata lie; the model has one matrix of 2 x 2."""

import json
import struct
from typing import Any

from . import READS, Case
from .parts import safetensors

FLOAT = struct.pack("<f", 1.0)


def lora(
    arrays: dict[str, list[int]] | None = None,
    metadata: dict[str, Any] | None = None,
    data: bytes | None = None,
    **changes: list[int],
) -> bytes:
    """A file of float32 arrays of these shapes, by default a good LoRA's."""
    arrays = {"m.lora_A.weight": [1, 2], "m.lora_B.weight": [2, 1]} if arrays is None else arrays
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, shape in (arrays | changes).items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return safetensors(header, FLOAT * (end // 4) if data is None else data)


def config(text: Any) -> bytes:
    """With diffusers' metadata."""
    whole = text if isinstance(text, str) else json.dumps(text)
    return lora(metadata={"lora_adapter_metadata": whole})


def patterns(count: int) -> dict[str, Any]:
    return {"lora_alpha": 1, "alpha_pattern": {f"{'x.' * 20}{n}": 1 for n in range(count)}}


MATRICES = r"m has matrices of shapes"
FILES = {
    "good": (lora(), READS),
    "metadata": (config({"lora_alpha": 1, "r": "many", "stranger": [{}]}), READS),
    # shapes
    "rank-much": (lora({"m.lora_A.weight": [2**15, 2], "m.lora_B.weight": [2, 2**15]}), MATRICES),
    "rank-0": (lora({"m.lora_A.weight": [0, 2], "m.lora_B.weight": [2, 0]}), MATRICES),
    "axes-3": (lora({"m.lora_A.weight": [1, 2, 1], "m.lora_B.weight": [2, 1]}), MATRICES),
    "axes-32": (lora({"m.lora_A.weight": [1] * 32, "m.lora_B.weight": [2, 1]}), MATRICES),
    "axes-32-up": (lora({"m.lora_A.weight": [1, 2], "m.lora_B.weight": [2] + [1] * 31}), READS),
    "wide": (lora({"m.lora_A.weight": [1, 2**18], "m.lora_B.weight": [2, 1]}), "of other shapes"),
    "large": (
        lora({"m.lora_A.weight": [1, 2**18], "m.lora_B.weight": [2**18, 1]}),  # product of 256 GB
        "of other shapes",
    ),
    "alpha-many": (lora(**{"m.alpha": [2**18]}), "alpha of m has shape"),
    "nan": (lora(data=struct.pack("<f", float("nan")) * 4), "m has NaN or infinite values"),
    # names
    "modules": (
        lora({f"m{n}.lora_A.weight": [1, 2] for n in range(50_000)}),
        "50000 modules that this model does not have",
    ),
    "strangers": (lora(**{f"m.{n}": [1] for n in range(50_000)}), "50000 arrays that no LoRA has"),
    "dots": (lora({f"{'.' * 200}.lora_A.weight": [1, 2]}), "1 module that this model"),
    "ends-alone": (lora({".lora_A.weight": [1, 2], "_lora.up.weight": [2, 1]}), "1 module that"),
    "underscores": (lora({f"{'lora_' * 40}.lora_A.weight": [1, 2]}), "1 module that this model"),
    # metadata
    "deep": (config("[" * 100_000), "lora_adapter_metadata is not JSON: its brackets are nested"),
    "list": (config([]), "it must be a JSON object"),
    "alpha-infinite": (config('{"lora_alpha":1e999}'), "lora_alpha is inf"),
    "alpha-digits": (config('{"lora_alpha":' + "9" * 4000 + "}"), "lora_alpha is 9"),
    "alpha-more-digits": (config('{"lora_alpha":' + "9" * 5000 + "}"), "is not JSON"),
    "alpha-text": (config({"lora_alpha": "x" * 10**6}), "lora_alpha is 'xxx"),
    "patterns": (config(patterns(100_000)), READS),
    "pattern-slow": (
        config({"lora_alpha": 1, "alpha_pattern": {"(m+)+" * 50: 1}}),
        r"regular expression '\(m",
    ),
    "pattern-long": (
        config({"lora_alpha": 1, "alpha_pattern": {"(" * 10**6: 1}}),
        "the regular expression '",
    ),
    "base-long": (
        lora({"x.lora_A.weight": [1, 2]}, {"ss_base_model_version": "y\n" * 10**6}),
        r"for another base \('y\\ny",
    ),
}


def cases() -> list[Case]:
    return [
        Case(f"lora-{label}.safetensors", *case, opener="read_lora")
        for label, case in FILES.items()
    ]
