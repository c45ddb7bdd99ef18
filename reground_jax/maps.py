"""The map of a photograph, for models of kind hed, canny, depth, normal and sem.

Other libraries see; this file asks them, and stores what they find as GLIGEN was trained on it:

    canny   edges are white: OpenCV's, of the picture at its own size
    hed     soft edges are white: controlnet_aux's HED
    depth   near is bright, as in MiDaS: a depth model of transformers
    normal  red is to the right, green is up, blue is to the viewer: diffusers' Marigold
    sem     ADE20K's classes, 1 to 150: a segmentation model of transformers

They are imported when they are needed; none needs torchvision, but for HED's.
"""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reground_jax.basics.fields import at_least, check_name, check_number
from reground_jax.basics.home import expand_home
from reground_jax.basics.wording import shown
from reground_jax.kinds import MAP_KINDS
from reground_jax.pictures import Picture

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

T = TypeVar("T")

DEFAULTS = {  # estimators, by kind
    "hed": "lllyasviel/Annotators",
    "depth": "Intel/dpt-hybrid-midas",
    "normal": "prs-eth/marigold-normals-v1-1",
    "sem": "openmmlab/upernet-convnext-small",
}
OPTIONS = {"canny": ("low", "high"), "depth": ("invert",)}
CLASSES = 150  # of ADE20K
METRIC = ("depth_pro", "glpn", "tipsv2_dpt", "zoedepth")  # types of models that predict distances
NEAREST = 1  # percent of the pixels, which are white: a single one must not darken all others
LONGEST_REASON = 300  # characters

INSTALL = "pip install 'reground-jax[maps]'"
INSTALL_HED = (
    "pip install controlnet_aux (with torchvision), or take soft edges, white on black, that "
    "another program made"
)


def make_map(
    picture: Any, kind: str, *, estimator: str | Path | None = None, **options: Any
) -> "Image.Image":
    """The map of a picture, of the same size: gray, or RGB for kind "normal".

    picture: whatever `Picture.of` takes. kind: one of MAP_KINDS. estimator: the folder or Hub id of
    a model, for every kind but canny; by default, that of DEFAULTS. options: of kind canny, the
    thresholds `low` (100) and `high` (200); of kind depth, `invert`, whether the model predicts
    distances, which grow where a map gets darker (None: as its configuration says, with a warning
    if it does). Raises ValueError that says what to do, also if a library is missing.
    """
    check_name("kind of map", kind, MAP_KINDS)
    for name in options:
        if name not in (own := OPTIONS.get(kind, ())):
            raise ValueError(
                f"{name} is not an option of kind {kind}, which has {' and '.join(own) or 'none'}: "
                "leave it out"
            )
    if kind not in DEFAULTS and estimator is not None:
        raise ValueError(f"kind {kind} needs no estimator: leave {shown(str(estimator))} out")
    if kind in DEFAULTS:
        source = _source(DEFAULTS[kind] if estimator is None else estimator)
    else:
        source = ""
    from reground_jax.pictures.pixels import upright_rgb

    makers = {"canny": _canny, "hed": _hed, "depth": _depth, "normal": _normal, "sem": _sem}
    return makers[kind](upright_rgb(Picture.of(picture)), source, **options)


def predicts_distance(config: Any) -> bool:
    """Whether a depth model of transformers predicts distances, and not their inverse."""
    backbone = getattr(config, "backbone_config", None)
    return (
        getattr(config, "depth_estimation_type", None) == "metric"
        or config.model_type in METRIC
        # Of the DPTs, only those over DINOv2 were trained on distances (NYU, KITTI).
        or (config.model_type == "dpt" and getattr(backbone, "model_type", None) == "dinov2")
    )


def _canny(image: "Image.Image", _: str, low: Any = 100, high: Any = 200) -> "Image.Image":
    for name, value in (("low", low), ("high", high)):
        check_number(name, value, *at_least(0))
    if low > high:
        raise ValueError(f"low is {low}, above high, {high}: exchange them")
    import numpy as np
    from PIL import Image

    cv2 = _library("cv2", "canny")
    gray = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)
    return Image.fromarray(cv2.Canny(gray, low, high))


def _hed(image: "Image.Image", source: str) -> "Image.Image":
    hed = _library("controlnet_aux", "hed", INSTALL_HED).HEDdetector
    detect = _loaded("hed", source, lambda: hed.from_pretrained(source))
    edges = detect(image, output_type="pil")  # its sides are multiples of 64
    return edges.convert("L").resize(image.size)


def _depth(image: "Image.Image", source: str, invert: Any = None) -> "Image.Image":
    if not (invert is None or isinstance(invert, bool)):
        raise ValueError(f"invert is {shown(invert)}: give True, False or None")
    import numpy as np
    from PIL import Image

    config = _config("depth", source, "DepthEstimation")
    pipeline = _library("transformers", "depth").pipeline
    estimate = _loaded("depth", source, lambda: pipeline("depth-estimation", model=source))
    with np.errstate(invalid="ignore"):  # in its own image, which is not used
        depth = estimate(image)["predicted_depth"].float().numpy(force=True)
    if invert is None and (invert := predicts_distance(config)):
        warnings.warn(
            f"{source} predicts distances: the map is their inverse, so that near is bright",
            stacklevel=3,
        )
    return Image.fromarray(_scaled(_inverse(depth) if invert else depth))


def _normal(image: "Image.Image", source: str) -> "Image.Image":
    torch, diffusers = _library("torch", "normal"), _library("diffusers", "normal")
    load = diffusers.MarigoldNormalsPipeline.from_pretrained
    estimate = _loaded("normal", source, lambda: load(source))
    if (found := estimate.config.prediction_type) != "normals":
        raise ValueError(
            f"{source} predicts {found or 'no normals'}: give one of Marigold's models of normals, "
            f"such as {DEFAULTS['normal']}"
        )
    normals = estimate(image, generator=torch.Generator().manual_seed(0)).prediction
    return estimate.image_processor.visualize_normals(normals)[0]


def _sem(image: "Image.Image", source: str) -> "Image.Image":
    from PIL import Image

    config = _config("sem", source, "Segmentation")
    if config.num_labels != CLASSES:
        raise ValueError(
            f"{source} has {config.num_labels} labels, but GLIGEN's are ADE20K's {CLASSES}; those "
            f"of Cityscapes or COCO mean other things: give a model trained on ADE20K, such as "
            f"{DEFAULTS['sem']}"
        )
    pipeline = _library("transformers", "sem").pipeline
    estimate = _loaded("sem", source, lambda: pipeline("image-segmentation", model=source))
    # Called as a whole, it would return a mask per name, and not the labels.
    found = estimate.forward(estimate.preprocess(image, subtask="semantic"))
    processor, size = estimate.image_processor, found["target_size"]
    labels = processor.post_process_semantic_segmentation(found, target_sizes=size)[0]
    return Image.fromarray((labels.numpy(force=True) + 1).astype("uint8"))


def _inverse(distance: "np.ndarray") -> "np.ndarray":
    """The inverse of distances, of which the nearest are clipped. Raises ValueError."""
    import numpy as np

    positive = distance[distance > 0]
    if not positive.size:
        raise ValueError("the estimator found no distance above 0: use --no-invert, or another one")
    return 1 / np.maximum(distance, np.percentile(positive, NEAREST))


def _scaled(values: "np.ndarray") -> "np.ndarray":
    """As the pipeline of transformers scales depths: from 0, the smallest, to 255."""
    low, high = values.min(), values.max()
    if not low < high:  # also for NaN
        raise ValueError(
            "the estimator found the same depth everywhere: use another picture or estimator"
        )
    return ((values - low) / (high - low) * 255).astype("uint8")


def _source(estimator: str | Path) -> str:
    """A folder, or a Hub id. Raises ValueError for anything else."""
    from reground_jax.convert import hub

    path = expand_home(estimator)
    if str(estimator) and path.is_dir():  # an empty path is the working directory
        return str(path)
    parsed = hub.parse(str(estimator))
    if parsed is None or parsed.file or parsed.revision:
        raise ValueError(
            f"estimator {shown(str(estimator))} is neither a folder on this machine nor the Hub id "
            "of a model, owner/name: correct it"
        )
    return parsed.repo


def _config(kind: str, source: str, task: str) -> Any:
    """The configuration of a model for this task, before its weights are read."""
    _library("torch", kind)
    load = _library("transformers", kind).AutoConfig.from_pretrained
    config = _loaded(kind, source, lambda: load(source))
    architecture = (config.architectures or ["model of an unknown architecture"])[0]
    if not architecture.endswith(task):
        raise ValueError(
            f"{source} is a {architecture}, which makes no {kind} map: give a model such as "
            f"{DEFAULTS[kind]}"
        )
    return config


def _loaded(kind: str, source: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except MemoryError:
        raise
    except Exception as error:  # those libraries raise errors of several others
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:LONGEST_REASON]
        raise ValueError(
            f"cannot load {source} for a map of kind {kind} ({reason.rstrip('.')}): give the "
            f"folder or the Hub id of another model, such as {DEFAULTS[kind]}"
        ) from error


def _library(name: str, kind: str, install: str = INSTALL) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name if error.name in (name, None) else f"{name}, and {name} needs {error.name}"
        raise ValueError(f"a map of kind {kind} needs {missing}: {install}") from error
