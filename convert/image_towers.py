"""Finds CLIP's image transformer, and the projection that makes its output features for GLIGEN.

Models grounded by reference images need both, but of these only diffusers folders hold them. The
projection is M [P, E], the weight of CLIP's text projection: a feature is an image embedding times
M. Our kernel is M, and its tensor is diffusers' `project.weight`, the transpose of M.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reground_jax.config import CLIPVisionConfig

from .configs import is_full_clip, vision_config
from .forms import form_of
from .keys import FOREIGN, normalize
from .pickles import load_torch
from .rules import read_json
from .sources import Located, TensorFile, Tensors, open_folder, open_tensors, resolve_clip
from .stored import StoredArray

DEFAULT_CLIP = "openai/clip-vit-large-patch14"  # GLIGEN's
PROJECT, TEXT_PROJECTION = "project.weight", "text_projection.weight"
SAME = 0.01  # relative distance of two matrices that differ by rounding only; bfloat16's is 2e-3


@dataclass(frozen=True)
class ImageTower:
    """What a model needs to read reference images."""

    config: CLIPVisionConfig
    tensors: Tensors  # of the networks image_encoder and image_project


def gather_image_tower(
    folder: Path | None = None,
    *,
    clip: str | Path | None = None,
    projection: str | Path | None = None,
    variant: str | None = None,
) -> ImageTower:
    """The image encoder and its projection.

    folder: a diffusers model that may have both, of this `variant`. clip: see
    `gather_image_encoder`; by default that in `folder`, or else OpenAI's ViT-L/14. projection: see
    `gather_projection`; by default that in `folder`, or else that of `clip`. Warns if the matrix is
    not CLIP's, as far as that is known. Raises ValueError for anything wrong with them.
    """
    place, found = tower_places(folder, clip=clip, projection=projection)
    own = variant if place == folder else None
    config, encoder = gather_image_encoder(place, own)
    project = gather_projection(found, variant if found == folder else None)
    check_projection(project, open_folder(image_part(place, "image_encoder"), own))
    return ImageTower(config, {"image_encoder": encoder, "image_project": {PROJECT: project}})


def tower_places(
    folder: Path | None, *, clip: str | Path | None, projection: str | Path | None
) -> tuple[Path, Path]:
    """Where the image encoder and the projection are, as `gather_image_tower` chooses them."""
    place = resolve_clip(clip or _holder(folder, "image_encoder") or DEFAULT_CLIP)
    return place, resolve_clip(projection or _holder(folder, "image_project") or place)


def gather_image_encoder(
    source: str | Path, variant: str | None = None
) -> tuple[CLIPVisionConfig, dict[str, Located]]:
    """The config and the tensors, by normalized name, of the network image_encoder.

    source: a folder or Hub id of transformers' CLIPModel or CLIPVisionModelWithProjection, or of a
    diffusers model with an image_encoder. Arrays of a CLIPModel's text transformer are left out.
    """
    folder = image_part(resolve_clip(source), "image_encoder")
    fields = read_json(folder / "config.json")
    config, file = vision_config(fields), open_folder(folder, variant)
    tensors = {normalize("image_encoder", name): Located(file, name) for name in file.keys()}
    if is_full_clip(fields):
        others = FOREIGN["image_encoder"]
        tensors = {name: t for name, t in tensors.items() if not others.search(name)}
    return config, tensors


def gather_projection(source: str | Path, variant: str | None = None) -> Located:
    """The tensor `project.weight` [E, P] of the network image_project.

    source: a diffusers model with an image_project, a full CLIPModel, for its text projection M, a
    file of either's tensors, or GLIGEN's file projection_matrix, which is M alone.
    """
    path = resolve_clip(source)
    file = open_projection(path, variant)
    if PROJECT in file:
        return Located(file, PROJECT)
    if (matrix := _text_projection(file)) is None:
        raise ValueError(
            f"{path} has neither {PROJECT} nor {TEXT_PROJECTION}, so it cannot make features of "
            "image embeddings: pass a full CLIPModel, or GLIGEN's file projection_matrix"
        )
    if len(matrix.shape) != 2:
        raise ValueError(f"{path}: the projection has shape {matrix.shape}, expected a matrix")
    return Located(TensorFile({PROJECT: matrix.transposed}, str(path)), PROJECT)


def check_projection(project: Located, clip: TensorFile) -> None:
    """Warns unless a `project.weight` is the transpose of the text projection in `clip`, if any."""
    if (stored := _text_projection(clip)) is None:
        return
    matrix, found = stored.read(), project.file.read(project.name)
    if _same(found, matrix.T):
        return
    problem = (
        "holds the transpose of the projection that GLIGEN applies to image embeddings"
        if _same(found, matrix)
        else "holds a projection that is not this CLIP's"
    )
    warnings.warn(
        f"{project.file.name} {problem} ({clip.name}): reference images would have wrong features; "
        "if they look ignored, pass a full CLIPModel as the projection",
        stacklevel=3,
    )


def _holder(folder: Path | None, part: str) -> Path | None:
    """The folder, if it has this part of a diffusers model."""
    return folder if folder is not None and (folder / part).is_dir() else None


def image_part(folder: Path, part: str) -> Path:
    """This part of a diffusers model, or else the folder itself."""
    return folder / part if _holder(folder, part) else folder


def open_projection(path: Path, variant: str | None = None) -> TensorFile:
    """The arrays where a projection is; a pickle's only array is `text_projection.weight`."""
    if path.is_dir():
        return open_folder(image_part(path, "image_project"), variant)
    content = load_torch(path) if form_of(path) == "torch" else None
    if isinstance(content, StoredArray):
        return TensorFile({TEXT_PROJECTION: content}, str(path))
    return open_tensors(path)


def _text_projection(file: TensorFile) -> StoredArray | None:
    """M [P, E], if it is there."""
    return file.stored(TEXT_PROJECTION) if TEXT_PROJECTION in file else None


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two matrices are equal but for rounding."""
    if one.shape != other.shape:
        return False
    one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
    return bool(np.linalg.norm(one - other) <= SAME * np.linalg.norm(other))
