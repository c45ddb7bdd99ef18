"""Attention guidance: steps along the gradient of a loss on attention maps, before each step.

boxes.py        what is guided: boxes with the tokens of their phrases, as cells of a level
maps.py         what several losses read: scores of words, smoothing
boxdiff.py, refocusing.py, backward.py   one method each: its places, arrays and loss
updates.py      the loop of updates inside a sampling step
"""
