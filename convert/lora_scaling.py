"""How a LoRA scales its products: alpha / r, or in rsLoRA alpha / sqrt(r).

alpha is an array of the file, or in a config: peft's adapter_config.json, or lora_adapter_metadata
in the header of diffusers' files. Without either it is r.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reground_jax.basics.json_text import parse_json
from reground_jax.basics.wording import named, shown

from .file_names import PEFT_CONFIG
from .lora_names import PEFT, PREFIXES
from .rules import FLAG, read_json, real
from .stored import StoredArray

NUMBER = real(-1e6, 1e6)
# Characters that make the name in a pattern a regular expression, except the dot.
SPECIAL = re.compile(r"[\\*+?\[\](){}|$^]")


@dataclass(frozen=True)
class Config:
    """peft's LoraConfig, as far as it scales."""

    alpha: float
    # Place in the config and alpha of exceptions, by a module's name or by the end of it.
    patterns: Mapping[str, tuple[int, float]]
    rslora: bool

    def factor(self, module: str, rank: int) -> float:
        """module: without a prefix."""
        parts = module.split(".")
        ends = [".".join(parts[start:]) for start in range(len(parts))] + [f"^{module}"]
        fitting = [self.patterns[end] for end in ends if end in self.patterns]
        _, alpha = min(fitting, default=(0, self.alpha))  # peft takes the first
        return alpha / (math.sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class Scaling:
    """The scaling of all modules of one file."""

    path: Path
    configs: Mapping[str, Config]  # by prefix of the modules' names

    def factor(self, module: str, rank: int, alpha: StoredArray | None) -> float:
        """Of one module; alpha: its array, if it has one, which counts more than a config."""
        if alpha is not None:
            return self._alpha(module, alpha) / rank
        for prefix, config in self.configs.items():
            if module.startswith(prefix):
                return config.factor(module.removeprefix(prefix), rank)
        return 1.0

    def _alpha(self, module: str, stored: StoredArray) -> float:
        if stored.size != 1:
            raise ValueError(
                f"{self.path}: alpha of {named(module)} has shape {stored.shape}, but it should be "
                "one number: use another copy"
            )
        value = float(stored.read().astype(np.float64).reshape(()))
        if not NUMBER.accepts(value):
            raise ValueError(
                f"{self.path}: alpha of {named(module)} is {value}: it must be {NUMBER.text}"
            )
        return value


def read_scaling(path: Path, modules: Iterable[str], metadata: Mapping[str, str]) -> Scaling:
    """The scaling of the file at `path`, whose header has `metadata`.

    Raises ValueError for a config that is damaged or not of a plain LoRA, and for peft's names
    without peft's config.
    """
    if any(module.startswith(PEFT) for module in modules):
        beside = path.with_name(PEFT_CONFIG)
        if not beside.is_file():
            raise ValueError(
                f"{path} has the names of peft, but no {PEFT_CONFIG} beside it, which says how it "
                "is scaled: pass the folder that has both"
            )
        return Scaling(path, {PEFT: _config(str(beside), read_json(beside))})
    if "lora_adapter_metadata" not in metadata:
        return Scaling(path, {})
    where = f"{path}: lora_adapter_metadata"
    try:
        fields = parse_json(metadata["lora_adapter_metadata"])
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where} is {shown(fields)}: it must be a JSON object")
    configs = {}
    for prefix in PREFIXES.values():
        own = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
        if own:
            configs[prefix] = _config(f"{where} of {prefix[:-1]}", own)
    if not configs:  # of a file whose names have no prefix either
        configs[""] = _config(where, fields)
    return Scaling(path, configs)


def _config(where: str, fields: Mapping[str, Any]) -> Config:
    """The config in fields of peft's LoraConfig. where: for messages."""
    kind = fields.get("peft_type", "LORA")
    if kind != "LORA" or fields.get("use_dora"):
        what = "DoRA" if kind == "LORA" else shown(kind)
        raise ValueError(f"{where}: it is of kind {what}, and only plain LoRA can be merged")
    patterns = fields.get("alpha_pattern") or {}
    rslora = fields.get("use_rslora", False)
    if not NUMBER.accepts(fields.get("lora_alpha")):
        raise ValueError(
            f"{where}: lora_alpha is {shown(fields.get('lora_alpha'))}: it must be {NUMBER.text}"
        )
    if not isinstance(patterns, dict) or not all(map(NUMBER.accepts, patterns.values())):
        raise ValueError(
            f"{where}: alpha_pattern is {shown(patterns)}: it must map names to alphas"
        )
    if not FLAG.accepts(rslora):
        raise ValueError(f"{where}: use_rslora is {shown(rslora)}: it must be {FLAG.text}")
    for pattern in patterns:
        if SPECIAL.search(pattern.removeprefix("^")):
            raise ValueError(
                f"{where}: alpha_pattern has the regular expression {named(pattern)}, which is not "
                "supported: write the modules' names"
            )
    places = {pattern: (place, alpha) for place, (pattern, alpha) in enumerate(patterns.items())}
    return Config(float(fields["lora_alpha"]), places, rslora)
