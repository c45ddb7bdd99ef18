"""The scene probe as an object detector like any other: COCO's AP for the built-in world."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from reground_jax.emoji.probes import FAINT, Probes
from reground_jax.evaluation.cases import Case
from reground_jax.evaluation.scorer import Scorer
from reground_jax.evaluation.scorers.detections import RULES, Detection, Rules, detection_scorer

VERSION = 1  # raised whenever the stored records change


def probe_detector(probes: Probes, *, name: str = "detector", rules: Rules = RULES) -> Scorer:
    """The scorer of the probes' detections, which have a score of at least FAINT."""

    def find(images: UInt8[np.ndarray, "B S S 3"], cases: Sequence[Case]) -> list[list[Detection]]:
        return [scene.detections for scene in probes.scenes(images)]

    return detection_scorer(
        find,
        name=name,
        version=f"{VERSION} {probes.checksum}",
        rules=rules,
        facts={"detector": "probe", "least_score": FAINT},
        about="## The detector\n\nThe built-in world's scene probe.",
    )
