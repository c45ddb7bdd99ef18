"""The probes as a detector under COCO's rules, on the built-in world exported in COCO's form."""

import json

import numpy as np
import pytest

from reground_jax.emoji.average_precision import average_precision, detection_record
from reground_jax.emoji.detector import probe_detector
from reground_jax.emoji.probes import Probes
from reground_jax.evaluation.data_sets.export import export_coco
from reground_jax.evaluation.data_sets.files import coco_set
from reground_jax.evaluation.scorer import Scorer
from reground_jax.evaluation.scorers.results import results_scorer
from tests.renders import renders


def numbers(scorer: Scorer, records, cases) -> dict[str, float]:
    judged = [scorer.judge(record, case) for record, case in zip(records, cases, strict=True)]
    once = np.ones((1, len(cases)))
    return {metric.name: metric.statistic(judged, once)[0] for metric in scorer.metrics[:2]}


def test_the_exported_world_has_the_ap_of_the_world_itself(tmp_path):
    images, cases = renders()
    probes = Probes.load()
    scorer = probe_detector(probes)
    records = scorer.score(images, cases)
    direct = numbers(scorer, records, cases)
    assert direct["ap50"] > 0.9 and 0.4 < direct["ap"] < direct["ap50"]
    published = [
        detection_record(case, scene.detections)
        for case, scene in zip(cases, probes.scenes(images), strict=True)
    ]
    voc = average_precision(published, np.ones((1, len(cases))))[0]
    assert direct["ap50"] == pytest.approx(voc, abs=0.005)  # on 1,000 renders they are .003 apart

    export_coco(tmp_path / "out", cases, images)
    files = tmp_path / "out/instances.json", tmp_path / "out/captions.json"
    read = coco_set(*files, name="emoji").cases
    index = {case.layout.id: i for i, case in enumerate(cases)}
    order = [index[case.layout.id] for case in read]
    assert numbers(scorer, [records[i] for i in order], read) == pytest.approx(direct, abs=1e-9)

    # The same detections, as another program would write them.
    exported = json.loads(files[0].read_text())
    ids = {category["name"]: category["id"] for category in exported["categories"]}
    results = [
        {
            "image_id": record["id"],
            "category_id": ids[name],
            "bbox": [64 * x0, 64 * y0, 64 * (x1 - x0), 64 * (y1 - y0)],
            "score": score,
        }
        for record in records
        for name, score, (x0, y0, x1, y1) in record["detections"]
        if name in ids
    ]
    path = tmp_path / "out/results.json"
    path.write_text(json.dumps(results))
    theirs = results_scorer(path, sorted({c for case in cases for c in case.counts}))
    made = theirs.score(images[order], read)
    assert numbers(theirs, made, read) == pytest.approx(direct, abs=1e-6)
