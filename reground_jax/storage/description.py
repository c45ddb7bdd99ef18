"""Reads and checks the description of a model directory: config.json and tokenizer.json.

DIR/config.json may come from a stranger or be edited by hand: anything wrong in it ends here, in
one CheckpointError.
"""

import hashlib
import json
import os
import re
from math import isfinite
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from reground_jax.basics.fields import as_float, as_int, as_object, check_range
from reground_jax.basics.json_text import parse_json
from reground_jax.basics.small_files import read_small
from reground_jax.basics.wording import shown
from reground_jax.config import ModelConfig, check_together
from reground_jax.sampling.schedule import alphas_cumprod
from reground_jax.settings import Settings
from reground_jax.storage import format1
from reground_jax.storage.checkpoint import CheckpointError

PROGRAM = "reground-jax"
FORMAT = f"{PROGRAM}/2"  # the one that is written; format1.py translates the previous one
CONFIG_BYTES, TOKENIZER_BYTES = 2**24, 2**27
MAX_GROUPS = 10**5
LEAST_SIGNAL = 1e-10  # share of the image in the last timestep; Stable Diffusion's is 5e-3
WAY_OUT = "undo the edit, or convert the checkpoint again"


class Description(NamedTuple):
    """A model directory without its arrays."""

    config: ModelConfig
    info: dict[str, Any]  # facts; "checksum" covers the arrays
    groups: int  # of arrays
    base: str | None  # relative path of the model directory with the arrays that are not here
    tokenizer_json: str
    recommended: dict[str, Any]  # fields of Settings that suit the model, used as defaults
    format: str  # FORMAT, or format1.FORMAT

    @property
    def checksum(self) -> str:
        """Covers all that determines an image: arrays, configuration and tokenizer."""
        files = checksums(self.config, self.tokenizer_json, self.format).values()
        return hashlib.sha256("\n".join((self.info["checksum"], *files)).encode()).hexdigest()

    def stored_name(self, name: str) -> str:
        """An array's name in the directory, which its checksums cover."""
        return format1.stored_name(name) if self.format == format1.FORMAT else name

    def has_checksum(self, recorded: str) -> bool:
        """Whether `recorded` is this model's; earlier versions recorded the arrays' checksum."""
        return recorded in (self.checksum, self.info["checksum"])


def checksums(config: ModelConfig, tokenizer_json: str, format: str = FORMAT) -> dict[str, str]:
    """The checksums of the two files in `info`.

    They cover what the files mean, not formatting or fields at their defaults.
    """
    changes = format1.changes(config) if format == format1.FORMAT else config.changes()
    texts = {"config": json.dumps(changes, sort_keys=True), "tokenizer": tokenizer_json}
    return {f"{k}_checksum": hashlib.sha256(v.encode()).hexdigest() for k, v in texts.items()}


def is_model_directory(path: Path) -> bool:
    """Whether `path` claims to be a model directory of any version of this package.

    It may still be damaged, or of a version that is not supported.
    """
    try:
        content = parse_json(read_small(path / "config.json", CONFIG_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and _version(content.get("format")) is not None


def read_description(directory: Path) -> Description:
    """Reads config.json and tokenizer.json, but no arrays.

    Raises CheckpointError if one is missing, damaged, edited, or from another program or version.
    """
    content = _read_config(directory)
    path = directory / "config.json"
    try:
        info = as_object("info", content["info"])
        groups = as_int("groups", content["groups"])
        check_range("groups", groups, 0, MAX_GROUPS)
        base = _base(content.get("base"))
        recommended = check_recommended(content.get("recommended", {}))
        known = ("format", "info", "groups", "base", "recommended")
        parts = {k: v for k, v in content.items() if k not in known}
        old = content["format"] == format1.FORMAT
        config = ModelConfig.from_json(format1.config_json(parts) if old else parts)
        _check_config(config)
        _check_info(info, config)
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error}: {WAY_OUT}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be used: {error}; {WAY_OUT}") from error
    tokenizer_json = _read_tokenizer(directory)
    for name, found in checksums(config, tokenizer_json, content["format"]).items():
        if info.get(name, found) != found:
            file = directory / f"{name.removesuffix('_checksum')}.json"
            raise CheckpointError(
                f"{file} was changed after the model was written (checksum mismatch): undo the "
                f"edit or, if it is intended, remove {name} from info in {path}"
            )
    return Description(config, info, groups, base, tokenizer_json, recommended, content["format"])


def check_recommended(fields: Any) -> dict[str, Any]:
    """Returns some fields of Settings unchanged. Raises ValueError if Settings rejects them."""
    recommended = as_object("recommended", fields)
    try:
        Settings.from_json(recommended)
    except ValueError as error:
        raise ValueError(f"recommended: {error}") from error
    return recommended


def check_tokenizer(text: str, config: ModelConfig) -> None:
    """Checks that a tokenizer.json fits the text encoder, and neither truncates nor pads.

    Raises ValueError whose message completes "cannot be used: ".
    """
    try:
        tokenizer = Tokenizer.from_str(text)
        if tokenizer.padding is not None or tokenizer.truncation is not None:
            raise ValueError("it truncates or pads texts, which is up to config.json")
        tokenizer.encode("a \u732b", add_special_tokens=False)  # detects a missing unknown token
    except Exception as error:  # the library raises bare Exception
        raise ValueError(str(error)) from error
    size = config.text_encoder.network.vocab_size
    beyond = {word: n for word, n in tokenizer.get_vocab().items() if n >= size}
    if beyond:
        word, number = max(beyond.items(), key=lambda item: item[1])
        raise ValueError(
            f"it has {len(beyond)} tokens that the text encoder does not have, such as "
            f"{shown(word)} with id {number}, but ids end at {size - 1}"
        )


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    make = f"make one with `reground-jax convert SOURCE {directory}`"
    try:
        content = parse_json(read_small(path, CONFIG_BYTES))
    except OSError:
        raise CheckpointError(
            f"{directory} is not a model directory of reground-jax (config.json is missing): {make}"
        ) from None
    except ValueError as error:
        raise CheckpointError(
            f"{directory} is not a model directory of reground-jax (config.json is damaged: "
            f"{error}): {make}"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(
            f"{directory} is not a model directory of reground-jax (its config.json is another "
            f"program's, or damaged): {make}"
        )
    if content["format"] not in (FORMAT, format1.FORMAT):
        found = (
            f"{directory} has format {shown(content['format'])}, but this version reads {FORMAT!r}"
        )
        if (_version(content["format"]) or 0) > 2:
            raise CheckpointError(
                f"{found} and older ones: install a newer reground-jax, or convert the checkpoint "
                "again with this one"
            )
        raise CheckpointError(f"{found}: convert it again")
    return content


def _version(format: Any) -> int | None:
    """The number in a format's name, or None if it is not one of our formats."""
    found = re.fullmatch("reground-jax/([0-9]{1,9})", format) if isinstance(format, str) else None
    return int(found[1]) if found else None


def _read_tokenizer(directory: Path) -> str:
    path = directory / "tokenizer.json"
    try:
        return read_small(path, TOKENIZER_BYTES).decode("utf-8").removeprefix("\ufeff")
    except OSError:
        raise CheckpointError(f"{path} is missing: convert it again") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is damaged (byte {error.start} is not UTF-8): {WAY_OUT}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _base(value: Any) -> str | None:
    """Checks that a base is a relative path: an absolute one may be a share on another machine."""
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\0" in value or not _is_encodable(value):
        raise ValueError(f"base is {shown(value)}: it must be the path of a model directory")
    if PurePosixPath(value).anchor or PureWindowsPath(value).anchor:
        raise ValueError(f"base is {shown(value)}: it must be relative to this model's directory")
    return value


def _is_encodable(path: str) -> bool:
    try:
        return bool(os.fsencode(path))
    except UnicodeEncodeError:
        return False


def _check_config(config: ModelConfig) -> None:
    check_together(config)
    last = -2 if config.schedule.rescale_betas_zero_snr else -1  # its very last has none on purpose
    signal = alphas_cumprod(config.schedule)[last]
    if not signal > LEAST_SIGNAL:
        raise ValueError(f"the noise schedule leaves {signal:.0e} of the image at its end")


def _check_info(info: dict[str, Any], config: ModelConfig) -> None:
    """Checks the facts that `write_model` records and `reground-jax info` shows."""
    for name in ("checksum", "dtype"):
        if not isinstance(info[name], str):
            raise ValueError(f"info.{name} is {shown(info[name])}: it must be a string")
    counts = as_object("info.parameters", info["parameters"])
    needed = {name: counts[name] for name in (*config.networks, "grounding")}
    counted = needed | counts | {"bytes": info["bytes"]}
    for name, count in counted.items():
        check_range(f"info's count of {name}", as_int(f"info's count of {name}", count), 0, 2**60)
    for block, gates in as_object("info.gates", info["gates"]).items():
        if not isinstance(gates, list) or len(gates) != 2:
            raise ValueError(f"info.gates.{block} is {shown(gates)}: it must be two numbers")
        for gate in gates:
            as_float(f"info.gates.{block}", gate)
    named = info.get("nonfinite", [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"info.nonfinite is {shown(named)}: it must be a list of strings")
    loras = info.get("loras", [])
    if not isinstance(loras, list) or not all(map(_is_lora, loras)):
        raise ValueError(f"info.loras is {shown(loras)}: it must list paths, checksums and scales")


def _is_lora(value: Any) -> bool:
    """Whether this is a record of `convert`'s of a LoRA that it added."""
    match value:
        case {"path": str(), "sha256": str(), "scales": [unet, text]}:
            return all(type(scale) in (int, float) and isfinite(scale) for scale in (unet, text))
    return False
