"""Areas and overlaps of boxes."""

import numpy as np

from reground_jax.basics.boxes import area, iou, overlap


def test_areas_and_overlaps():
    assert area((1, 2, 4, 8)) == 18
    assert overlap((0, 0, 4, 4), (2, 3, 9, 9)) == 2
    # Boxes that are apart or share only a corner do not overlap.
    assert overlap((0, 0, 1, 1), (2, 0, 3, 1)) == overlap((0, 0, 1, 1), (1, 1, 2, 2)) == 0


def test_iou_of_boxes():
    a = np.array([0, 0, 0.5, 1.0])
    others = np.array([a, [0.25, 0, 0.75, 1], [0.5, 0, 1, 1], [0.2, 0.2, 0.2, 0.2]])
    # identical; a third; touching; empty
    np.testing.assert_allclose(iou(a, others), [1, 1 / 3, 0, 0])
