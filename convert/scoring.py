"""Networks that score images, straight from the files that people have: no directory between.

Each tensor is matched to one parameter, as in a conversion, and checked; they are held as float32
only from their first use on, not by a command that makes images only.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from reground_jax.config import CLIPConfig, TokenizerConfig
from reground_jax.model import Params
from reground_jax.networks.clip_model import CLIPModel
from reground_jax.networks.inception import Inception
from reground_jax.storage.checkpoint import flatten, unflatten

from .configs import clip_config, is_full_clip
from .conversion import read_arrays
from .file_names import clip_files, only_weights
from .forms import sha256_of
from .hub import TOKENIZER_FILES, revision_of
from .keys import match
from .rules import read_json
from .sources import Located, TensorFile, local_or_hub, open_folder, open_tensors, resolve_tokenizer
from .tokenizers import BuiltTokenizer, build_tokenizer

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"
)
VOCABULARY = {"tokenizer.json", "vocab.json"}  # one of them is in the folder of a tokenizer
CLASSES = (1008, 2048)  # the shape of the last layer, which features do not need


class Network(NamedTuple):
    """A network, and where it is from.

    read      reads the parameters: float32, on the host
    revision  the commit of a Hub id, else None
    files     SHA-256 of each file that was read, by name
    """

    graph: nnx.GraphDef
    read: Callable[[], Params]
    revision: str | None
    files: dict[str, str]


class Clip(NamedTuple):
    """A CLIP that compares images and texts; `tokenizer.config` fits its text transformer."""

    config: CLIPConfig
    network: Network
    tokenizer: BuiltTokenizer


def load_clip(
    source: str | Path,
    tokenizer: str | Path | None = None,
    *,
    otherwise: str | Path | None = None,
) -> Clip:
    """A full CLIP: both transformers, their projections, the scale, and a tokenizer.

    source: a folder or Hub id of transformers' CLIPModel, with safetensors or a pickle. tokenizer:
    a folder, a merges file or a Hub id; by default `source`, or, if that has none, `otherwise`.
    Raises ValueError for a folder that is no full CLIP, in one sentence, and KeyMismatch for
    tensors that do not fit its config.
    """
    way_out = "pass a folder of transformers' CLIPModel, or a Hub id (owner/name)"
    folder = local_or_hub(source, "CLIP ", way_out, clip_files)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, so it is not a CLIP: {way_out}")
    fields = read_json(folder / "config.json")
    if not is_full_clip(fields):
        kind = fields.get("model_type") or fields.get("architectures") or "an unknown model"
        raise ValueError(
            f"{folder} is {kind}, but images and texts are compared by a full CLIP: {way_out}"
        )
    config, file = clip_config(fields), open_folder(folder)
    for name in ("text_projection.weight", "visual_projection.weight", "logit_scale"):
        if name not in file:
            raise ValueError(
                f"{file.name} has no {name}, without which images and texts cannot be compared: "
                f"{way_out}"
            )
    if tokenizer is None and not VOCABULARY & {one.name for one in _tokenizer_files(folder)}:
        tokenizer = otherwise
    words = resolve_tokenizer(tokenizer or source)
    built = _fitting(build_tokenizer(words), config, words)
    files = [folder / "config.json", *_weights(file), *_tokenizer_files(words)]
    network = _load("clip", lambda rngs: CLIPModel(config, rngs=rngs), file, folder, files)
    return Clip(config, network, built)


def load_inception(source: str | Path) -> Network:
    """The InceptionV3 of FID.

    source: pytorch-fid's or torch-fidelity's file of it, any other file with the same names, a
    folder with one of them, or a Hub id. Raises ValueError in one sentence for another network.
    """
    way_out = f"pass the file {INCEPTION_FILE}, which is at {INCEPTION_URL}"
    path = local_or_hub(source, "Inception ", way_out, lambda names: [only_weights(names)])
    if path.is_dir():
        path = path / only_weights([entry.name for entry in path.iterdir()])
    file = open_tensors(path)
    last = file.shape("fc.weight") if "fc.weight" in file else "not there"
    if last != CLASSES:
        raise ValueError(
            f"{path} is not the Inception of FID: the shape of its fc.weight is {last}, expected "
            f"{CLASSES}; {way_out}"
        )
    return _load("inception", lambda rngs: Inception(rngs=rngs), file, path, _weights(file))


def _load(
    name: str,
    build: Callable[[nnx.Rngs], nnx.Module],
    file: TensorFile,
    path: Path,
    files: Iterable[Path],
) -> Network:
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    shapes = {at: leaf.shape for at, leaf in flatten({name: nnx.to_pure_dict(state)})}
    leaves = match(shapes, {name: file.shapes()})
    tensors = {name: {key: Located(file, key) for key in file.keys()}}

    def arrays() -> Iterable[tuple[str, Any]]:
        return read_arrays(leaves, tensors, "float32")

    def read() -> Params:
        return unflatten(arrays())[name]

    for _ in arrays():  # NaN is refused now, with one array in memory at a time
        pass
    return Network(graph, read, revision_of(path), {one.name: sha256_of(one) for one in files})


def _fitting(built: BuiltTokenizer, config: CLIPConfig, source: Path) -> BuiltTokenizer:
    """The tokenizer, of texts no longer than the network takes. Raises ValueError for another's."""
    text, ours = config.text, built.config
    end = built.size - 1 if text.eos_token_id is None else text.eos_token_id
    if built.size > text.vocab_size or ours.eos_token_id != end:
        raise ValueError(
            f"{source} is not this CLIP's tokenizer: it has {built.size} tokens and ends texts at "
            f"{ours.eos_token_id}, but the network has {text.vocab_size} and reads texts at {end}; "
            "pass the matching tokenizer"
        )
    length = min(ours.max_length, text.max_length)
    fitting = TokenizerConfig(length, ours.bos_token_id, ours.eos_token_id, ours.pad_token_id)
    return built._replace(config=fitting)


def _weights(file: TensorFile) -> list[Path]:
    """The files that hold the arrays: one, or its shards."""
    return list(dict.fromkeys(array.path for array in file.stored_arrays().values()))


def _tokenizer_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / "tokenizer" if (path / "tokenizer").is_dir() else path
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
