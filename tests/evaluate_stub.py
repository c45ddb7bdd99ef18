"""`reground-jax evaluate` with a stand-in for the model and for the scorer, to be killed.

A program: `python -m tests.evaluate_stub SECONDS ARGUMENTS...` is the command line with a step of
SECONDS per batch and per scored group.
"""

import sys
import time

from reground_jax.cli import data_sets, evaluate, main
from tests.studies import Painter, brightness, pixels, scorer


class Slow(Painter):
    def draw(self, layouts, settings, seeds):
        time.sleep(float(sys.argv[1]))
        return super().draw(layouts, settings, seeds)


def slow_pixels(images, cases):
    time.sleep(float(sys.argv[1]))
    return pixels(images, cases)


if __name__ == "__main__":
    evaluate.load_pipeline = lambda *_: Slow()
    evaluate.sampler_on = lambda pipe, run: pipe
    stub = scorer(score=slow_pixels, metrics=(brightness(),))
    data_sets.SCORERS["probes"] = lambda *_: stub
    sys.exit(main(sys.argv[2:]))
