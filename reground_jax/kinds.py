"""The kinds of grounding: what the fusers of a checkpoint read. A checkpoint has one.

text        phrases in boxes
text_image  phrases, reference images or both in boxes
keypoint    the joints of persons
the others  a map of the whole image: edges (hed, canny), depth, normals, or semantic classes
"""

from typing import Literal, get_args

GroundingKind = Literal["text", "text_image", "keypoint", "hed", "canny", "depth", "normal", "sem"]
MapKind = Literal["hed", "canny", "depth", "normal", "sem"]

KINDS: tuple[GroundingKind, ...] = get_args(GroundingKind)
MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)
BOXED: tuple[GroundingKind, ...] = ("text", "text_image")  # have boxes
