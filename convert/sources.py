"""Sources of checkpoints: files, folders and the Hub behind one lazy interface."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reground_jax.basics.home import expand_home
from reground_jax.basics.json_text import parse_json
from reground_jax.basics.small_files import read_small
from reground_jax.basics.wording import named, shown
from reground_jax.storage.description import is_model_directory

from . import hub
from .file_names import (
    PEFT_CONFIG,
    clip_files,
    embedding_files,
    hub_files,
    lora_files,
    only_weights,
    pick_weights,
    some,
    vae_files,
    weight_names,
)
from .forms import form_of
from .ldm import LDM_PREFIXES
from .lora_names import is_lora
from .low_rank import Delta, add
from .pickle_data import Inert, Name
from .pickles import load_torch, plain
from .rules import read_json
from .safetensors import read_header
from .stored import StoredArray

Kind = Literal["ours", "diffusers", "original", "ldm", "adapter", "lora"]

ORIGINAL_PARTS = ("model", "text_encoder", "autoencoder", "diffusion")
LONGEST_NAME = 256  # characters
LARGEST_INDEX = 2**24  # bytes of the JSON that lists shards


class TensorFile:
    """Named arrays that are read on demand, from one file, shards, or part of a pickle."""

    def __init__(self, arrays: Mapping[Any, Any], name: str) -> None:
        """name: where the arrays are from, for messages.

        Raises ValueError if `arrays`, which a file determines, holds anything but StoredArrays with
        printable names.
        """
        for key, value in arrays.items():
            if not isinstance(value, StoredArray):
                kind = value.name if isinstance(value, Inert | Name) else type(value).__name__
                raise ValueError(
                    f"{name}: {shown(key)} is a {kind}, but a state dict may only hold arrays"
                )
            if not _is_name(key):
                raise ValueError(
                    f"{name} has an array named {shown(key)}; names must be printable strings of "
                    f"at most {LONGEST_NAME} characters"
                )
        self._arrays: dict[str, StoredArray] = dict(arrays)
        self.name = name

    def __repr__(self) -> str:
        return f"TensorFile({self.name}, {len(self._arrays)} arrays, {self.nbytes} bytes)"

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def keys(self) -> list[str]:
        """All names, in file order."""
        return list(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All names with their shapes."""
        return {name: array.shape for name, array in self._arrays.items()}

    def dtype(self, name: str) -> np.dtype:
        """NumPy dtype; bfloat16 is that of ml_dtypes."""
        return self._arrays[name].dtype

    def stored(self, name: str) -> StoredArray:
        """The array as it lies in its file."""
        return self._arrays[name]

    def stored_arrays(self) -> dict[str, StoredArray]:
        """All arrays by name, as they lie in their file."""
        return dict(self._arrays)

    def read(self, name: str) -> np.ndarray:
        """Reads the array from the file, without caching. Raises ValueError if truncated."""
        return self._arrays[name].read()

    @property
    def nbytes(self) -> int:
        """Total bytes of all arrays; every view of a shared storage counts."""
        return sum(array.size * array.dtype.itemsize for array in self._arrays.values())


@dataclass(frozen=True)
class Located:
    """One tensor of a source, what LoRAs add to it, and rows that follow its own."""

    file: TensorFile
    name: str
    deltas: tuple[Delta, ...] = ()
    rows: tuple[np.ndarray, ...] = ()  # [n, ...] each

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.file.shape(self.name)
        more = sum(len(rows) for rows in self.rows)
        return (shape[0] + more, *shape[1:]) if more else shape

    def read(self, dtype: np.dtype | None = None) -> np.ndarray:
        """The sum, in `dtype` or else the file's own; without deltas always in the file's own."""
        array = add(self.file.read(self.name), self.deltas, dtype)
        if not self.rows:
            return array
        return np.concatenate([array, *(rows.astype(array.dtype) for rows in self.rows)])


Tensors = dict[str, dict[str, Located]]  # network -> diffusers name -> tensor


def _is_name(value: Any) -> bool:
    """Whether an array or a file may have this name: messages print names as they are."""
    return isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()


def open_tensors(path: str | Path) -> TensorFile:
    """The arrays of one file: safetensors, torch's, or a JSON index of shards.

    The format is detected from the first bytes, not from the name. torch's holds a flat state
    dict, or has one under the key "state_dict". Raises ValueError (see `forms.form_of`,
    `safetensors.read_header`, `pickles.load_torch`) for a file that cannot be read.
    """
    path = Path(path)
    return _open_shards(path) if form_of(path) == "index" else _open_file(path)


def _open_file(path: Path) -> TensorFile:
    match form_of(path):
        case "safetensors":
            return TensorFile(read_header(path), str(path))
        case "torch":
            return _state_dict(load_torch(path), path)
    raise ValueError(f"{path} is JSON, but a file of arrays was expected")


def _state_dict(content: Any, path: Path) -> TensorFile:
    for _ in range(2):  # some trainers save one in another
        if isinstance(content, dict) and "state_dict" in content:
            content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a dict of arrays was expected")
    return TensorFile(content, str(path))


def _open_shards(index: Path) -> TensorFile:
    try:
        content = parse_json(read_small(index, LARGEST_INDEX), unique=True)
    except ValueError as error:
        raise ValueError(f"{index} is not JSON: {error}") from error
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or not all(map(_is_name, where.values())):
        raise ValueError(
            f"{index} is not an index of shards: its weight_map should name each array's file"
        )
    shards = {
        name: _open_file(index.parent / Path(name).name) for name in dict.fromkeys(where.values())
    }
    if lost := [(key, shard) for key, shard in where.items() if key not in shards[shard]]:
        key, shard = lost[0]
        raise ValueError(
            f"{index} says that {named(key)} is in {named(shard)}, which does not have it (and "
            f"{len(lost) - 1} more); download the whole folder again"
        )
    return TensorFile({key: shards[shard]._arrays[key] for key, shard in where.items()}, str(index))


def open_folder(folder: str | Path, variant: str | None = None) -> TensorFile:
    """The weights in one subfolder of a diffusers model (`unet`, `vae`, `text_encoder`).

    `pick_weights` chooses the file. Raises ValueError that lists the names it looked for.
    """
    folder = Path(folder)
    present = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    picked = pick_weights(present, variant)
    if picked is None:
        raise ValueError(
            f"{folder} has no weights: looked for {', '.join(weight_names(variant))}; "
            f"it has {some(present)}"
        )
    return open_tensors(folder / picked)


def open_original(path: str | Path) -> tuple[dict[str, TensorFile], dict[str, Any]]:
    """An original GLIGEN checkpoint: its four state dicts, keyed by ORIGINAL_PARTS, and its config.

    The config is plain dicts and lists; see `original_configs.translate`. Raises ValueError if the
    file is another kind of pickle.
    """
    return _split_original(load_torch(path), Path(path))


def _split_original(content: Any, path: Path) -> tuple[dict[str, TensorFile], dict[str, Any]]:
    wanted = (*ORIGINAL_PARTS, "config_dict")
    held = content if isinstance(content, dict) else {}
    if missing := [key for key in wanted if key not in held]:
        raise ValueError(
            f"{path} is not an original GLIGEN checkpoint, a dict of {', '.join(wanted)}: "
            f"it lacks {', '.join(missing)}"
        )
    if wrong := [part for part in ORIGINAL_PARTS if not isinstance(held[part], dict)]:
        raise ValueError(
            f"{path} is not an original GLIGEN checkpoint: its {', '.join(wrong)} should be dicts"
        )
    parts = {part: TensorFile(held[part], f"{path}[{part}]") for part in ORIGINAL_PARTS}
    try:
        config = plain(held["config_dict"])
    except ValueError as error:
        raise ValueError(f"{path}: its {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: its config is a {type(config).__name__}, not a dict of settings")
    return parts, config


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine, and its format.

    "ours": a model directory of this package. "diffusers": a folder of components. "original": the
    original code's pickle. "ldm": one file of Stable Diffusion with CompVis's key names.
    "adapter": only fusers and position net, under the original names. "lora": a LoRA, or a similar
    adapter that cannot be merged.
    """

    kind: Kind
    path: Path


def resolve(source: str | Path, variant: str | None = None) -> Source:
    """The checkpoint at an existing path, or else of a Hub id; downloads only the needed files.

    A Hub id is `owner/name`, `owner/name/file` or `...@revision`. Raises ValueError for a path or
    id that does not exist or is not a known kind of checkpoint.
    """
    way_out = "pass an existing folder or file, or a Hub id (owner/name)"
    return detect(local_or_hub(source, "", way_out, lambda names: hub_files(names, variant)))


def resolve_tokenizer(source: str | Path) -> Path:
    """The same for a tokenizer: an existing folder or merges file, or else a Hub id."""
    way_out = (
        "pass a folder with tokenizer.json, or with vocab.json and merges.txt, a merges file "
        "(bpe_simple_vocab_16e6.txt.gz), or a Hub id"
    )
    return local_or_hub(source, "tokenizer ", way_out, hub.tokenizer_files)


def resolve_clip(source: str | Path) -> Path:
    """The same for a CLIP model or its projection: a folder, a file, or else a Hub id."""
    way_out = (
        "pass a folder of transformers' CLIPModel or CLIPVisionModelWithProjection, a file of its "
        "projection, or a Hub id (owner/name)"
    )
    return local_or_hub(source, "CLIP ", way_out, clip_files)


def resolve_vae(source: str | Path) -> Path:
    """The same for an autoencoder: a folder, a file, or else a Hub id."""
    way_out = (
        "pass a diffusers AutoencoderKL or model, a single file that has an autoencoder, or a Hub "
        "id (stabilityai/sd-vae-ft-mse)"
    )
    return local_or_hub(source, "autoencoder ", way_out, vae_files)


def resolve_embedding(source: str | Path) -> Path:
    """The same for an embedding of textual inversion: a file, or else a Hub id."""
    way_out = "pass a file, or a Hub id (sd-concepts-library/name)"
    path = local_or_hub(source, "embedding ", way_out, embedding_files)
    if path.is_dir():
        return path / embedding_files([entry.name for entry in path.iterdir()])[0]
    return path


def resolve_lora(source: str | Path) -> Path:
    """The same for the file of a LoRA, which may be in a folder: a path, or else a Hub id."""
    way_out = "pass a file, a folder that peft wrote, or a Hub id (owner/name/file)"
    path = local_or_hub(source, "LoRA ", way_out, lora_files)
    if not path.is_dir():
        return path
    try:
        return path / lora_files([entry.name for entry in path.iterdir()])[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def local_or_hub(
    source: str | Path, what: str, way_out: str, files: Callable[[list[str]], list[str]]
) -> Path:
    """An existing path, or else a Hub id's download of `files`. what, way_out: for the error."""
    path = expand_home(source)
    if path.exists():
        return path
    if hub.parse(str(source)) is None:
        raise ValueError(f"{what}{source!s} does not exist; {way_out}")
    return hub.download(str(source), files)


def detect(path: str | Path) -> Source:
    """The kind of checkpoint at an existing path. Reads headers and configs, but no arrays.

    A folder with one weight file in it counts as that file. Raises ValueError for an unknown kind.
    """
    path = Path(path)
    if path.is_dir():
        return _detect_folder(path)
    if form_of(path) == "torch":
        content = load_torch(path)
        if isinstance(content, dict) and "model" in content:
            _split_original(content, path)
            return Source("original", path)
        keys = _state_dict(content, path).keys()
    else:
        keys = open_tensors(path).keys()
    if is_lora(keys):
        return Source("lora", path)
    if adapter_prefix(keys) is not None:
        return Source("adapter", path)
    if any(key.startswith(LDM_PREFIXES["unet"]) for key in keys):
        return Source("ldm", path)
    if any(key.startswith("input_blocks.0.0.") for key in keys):
        raise ValueError(
            f"{path} is a U-Net alone, without text encoder and autoencoder: use the whole "
            "checkpoint (model.diffusion_model.*), or a diffusers folder"
        )
    shown = ", ".join(keys[:3]) or "nothing"
    raise ValueError(
        f"{path} is not a known kind of checkpoint: it has {len(keys)} arrays ({shown}, ...); "
        "supported are the original GLIGEN pickle, Stable Diffusion single files "
        "(model.diffusion_model.*), GLIGEN adapters (*.fuser.*, position_net.*) and folders of "
        "diffusers models"
    )


def adapter_prefix(keys: Sequence[str]) -> str | None:
    """What stands before every name in a file of only fusers and a position net, often nothing.

    None for any other file.
    """
    first = next((key for key in keys if "position_net." in key), "")
    prefix = first.partition("position_net.")[0]
    inside = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    whole = len(inside) == len(keys) > 0
    only = all(".fuser." in name or name.startswith("position_net.") for name in inside)
    return prefix if whole and only else None


def _detect_folder(path: Path) -> Source:
    if is_model_directory(path):
        return Source("ours", path)
    config = path / "config.json"
    fields = read_json(config) if config.is_file() else {}
    if "_class_name" in fields or "architectures" in fields:
        name = fields.get("_class_name") or fields.get("architectures")
        raise ValueError(
            f"{path} is one component of a model ({name}); pass its parent folder, which contains "
            "unet, vae, text_encoder and scheduler"
        )
    if (path / "unet").is_dir() or (path / "model_index.json").is_file():
        parts = [f"{part}/config.json" for part in ("unet", "vae", "text_encoder")]
        parts.append("scheduler/scheduler_config.json")
        if missing := [part for part in parts if not (path / part).is_file()]:
            raise ValueError(
                f"{path} is an incomplete diffusers model: it lacks {', '.join(missing)}"
            )
        return Source("diffusers", path)
    try:
        names = [entry.name for entry in path.iterdir()]
        peft = PEFT_CONFIG in names
        return detect(path / (lora_files(names)[0] if peft else only_weights(names)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
