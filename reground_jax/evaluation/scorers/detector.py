"""Object detectors of transformers: DETR, YOLOS, RT-DETR, D-FINE and others, from a folder or Hub.

torch and transformers (the extra `evaluate`) are imported when the first images are scored.
Images are prepared by Pillow, whether or not torchvision is installed, and scored in float32.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reground_jax.basics.home import expand_home
from reground_jax.basics.wording import shown
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.data_sets.coco_names import coco_name
from reground_jax.evaluation.scorer import Scorer
from reground_jax.evaluation.scorers.detections import (
    MOST,
    RULES,
    Detection,
    Rules,
    detection_scorer,
)
from reground_jax.readers import read_json

VERSION = 1  # raised whenever the stored records change
BATCH = 8  # images; always as many, so that the numbers do not depend on how images are grouped
INSTALL = "pip install 'reground-jax[evaluate]'"
NO_OBJECT = "N/A"  # the name of ids that COCO does not use


def detector_scorer(
    source: str,
    categories: Sequence[str],
    *,
    name: str = "detector",
    rules: Rules = RULES,
    device: str | None = None,
) -> Scorer:
    """The scorer of a detector, which is downloaded if it is a Hub id, but not loaded yet.

    source: a folder that transformers wrote, or a Hub id. categories: those that the data set asks
    for. device: torch's name of it (default: a GPU if there is one).

    Raises ValueError, which says what to do, if torch or transformers is missing, if the detector
    cannot be used, or if it lacks a category.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"a detector needs {package}: {INSTALL}")
    folder = _folder(source)
    labels = _labels(folder, categories)
    network = functools.cache(lambda: _network(folder, device))

    def find(images: UInt8[np.ndarray, "B H W 3"], cases: Sequence[Case]) -> list[list[Detection]]:
        found: list[list[Detection]] = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            full = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), 0)])
            found += _detections(network()(full)[: len(part)], labels, images.shape[1:3])
        return found

    return detection_scorer(
        find,
        name=name,
        version=f"{VERSION} {_checksum(folder)}",
        rules=rules,
        facts={"detector": source},
        about=f"## The detector\n\n{source}, run by transformers.",
    )


def _folder(source: str) -> Path:
    path = expand_home(source)
    if path.exists():
        if not (path / "config.json").is_file():
            raise ValueError(f"{source} has no config.json: give a folder that transformers wrote")
        return path
    from reground_jax.convert.hub import download

    return download(source, _needed)


def _needed(names: list[str]) -> list[str]:
    weights = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    weights = weights or [name for name in names if name == "pytorch_model.bin"]
    others = ("config.json", "preprocessor_config.json", "model.safetensors.index.json")
    return weights + [name for name in others if name in names]


def _checksum(folder: Path) -> str:
    """Of the files that the scores depend on, by name and content."""
    total = hashlib.sha256()
    for path in sorted(folder / name for name in _needed([p.name for p in folder.iterdir()])):
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _labels(folder: Path, categories: Sequence[str]) -> dict[int, str]:
    """COCO's name of each label, by the configuration's names and never by their order."""
    config = read_json(folder / "config.json", "transformers")
    names = config.get("id2label") if isinstance(config, dict) else None
    if not isinstance(names, dict):
        raise ValueError(f"{folder / 'config.json'} has no id2label: is it an object detector?")
    if config.get("model_type") == "rf_detr":
        raise ValueError(
            "transformers prepares RF-DETR's images with torchvision only, which is not used here: "
            "take another detector, such as PekingU/rtdetr_r50vd, or give its results as a file"
        )
    labels = {int(i): coco_name(str(n)) for i, n in names.items() if n not in (None, NO_OBJECT)}
    if missing := sorted(set(categories) - set(labels.values())):
        raise ValueError(
            f"detector {folder} does not know {', '.join(missing)}, which the data set asks for; "
            f"it knows {shown(sorted(labels.values()))}"
        )
    return labels


def _network(folder: Path, device: str | None) -> Callable[[np.ndarray], list[Any]]:
    """A function: images [BATCH, H, W, 3] -> (scores, labels, boxes in pixels) of each."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    model, loading = AutoModelForObjectDetection.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"{folder} lacks weights of its detector: {shown(missing)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model.eval().to(device)

    def run(images: np.ndarray) -> list[Any]:
        pictures = [Image.fromarray(image) for image in images]
        inputs = processor(images=pictures, return_tensors="pt").to(device)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            outputs = model(**inputs)
        if not all(part.isfinite().all() for part in (outputs.logits, outputs.pred_boxes)):
            raise ValueError(f"the outputs of {folder} are not finite: are its weights damaged?")
        sizes = [images.shape[1:3]] * len(images)  # height, width
        found = processor.post_process_object_detection(outputs, threshold=0, target_sizes=sizes)
        return [
            tuple(one[key].cpu().numpy() for key in ("scores", "labels", "boxes")) for one in found
        ]

    return run


def _detections(
    found: Sequence[Any], labels: dict[int, str], size: tuple[int, ...]
) -> list[list[Detection]]:
    """The best detections of each image. size: height, width."""
    height, width = size
    result = []
    for scores, numbers, boxes in found:
        order = [i for i in np.argsort(-scores, kind="stable") if int(numbers[i]) in labels]
        fractions = (boxes / np.array([width, height, width, height], np.float32)).tolist()
        best = order[: 2 * MOST]  # `stored` sorts ties and takes MOST
        result.append(
            [Detection(labels[int(numbers[i])], float(scores[i]), (*fractions[i],)) for i in best]
        )
    return result
