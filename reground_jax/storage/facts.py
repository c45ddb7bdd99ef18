"""Collects facts about a model's arrays as they stream by: checksums, sizes, gates, and NaN."""

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

GATES = ("/fuser/alpha_attn", "/fuser/alpha_dense")  # suffixes of the fusers' gates


def is_grounding(name: str) -> bool:
    """Whether an array belongs to what GLIGEN adds to Stable Diffusion."""
    return "/fuser/" in name or name.startswith(("unet/position_net/", "unet/downsample_net/"))


class Facts:
    """Collects facts about arrays of the networks that arrive one by one."""

    def __init__(self, networks: Iterable[str]) -> None:
        self.digests: list[str] = []
        self.sums: list[str] = []
        self.dtypes: set[str] = set()
        self.bytes = 0
        self.parameters: dict[str, int] = dict.fromkeys((*networks, "grounding"), 0)
        self.gates: dict[str, list[float]] = {}
        self.nonfinite: list[str] = []

    def add(self, name: str, array: np.ndarray) -> None:
        self.digests.append(digest(name, array))
        self.sums.append(word_sum(name, array))
        self.dtypes.add(str(array.dtype))
        self.bytes += array.nbytes
        self.parameters[name.split("/")[0]] += array.size
        if is_grounding(name):
            self.parameters["grounding"] += array.size
        if name.endswith(GATES):
            # Block 0, the only one per transformer in Stable Diffusion 1.x and 2.x, has no number.
            block = name.removeprefix("unet/").split("/fuser/")[0].removesuffix("/blocks/0")
            self.gates.setdefault(block, []).append(math.tanh(float(array)))
        if not np.isfinite(array).all():
            self.nonfinite.append(name)

    def summary(self) -> dict[str, Any]:
        """The facts as plain JSON values.

        parameters: counts by network, and of grounding within the U-Net. gates: tanh(alpha) of each
        fuser's attention and feed-forward, by block. nonfinite: arrays with NaN or infinity, only
        if there are any.
        """
        facts = {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtype": "+".join(sorted(self.dtypes)),
            "checksum": combined(self.digests),
            "sums": combined(self.sums),
            "gates": self.gates,
        }
        return facts | ({"nonfinite": self.nonfinite} if self.nonfinite else {})


def digest(name: str, array: np.ndarray) -> str:
    """A line with an array's name, dtype and shape, and the SHA-256 of its content."""
    return f"{name} {array.dtype} {array.shape} {hashlib.sha256(_bytes(array).data).hexdigest()}"


def word_sum(name: str, array: np.ndarray) -> str:
    """Like `digest`, but with the sum of the content's 64-bit words.

    Six times as fast; detects damage, but not tampering.
    """
    content = _bytes(array)
    whole = content.size // 8 * 8
    rest = int.from_bytes(content[whole:].tobytes(), "little")
    return f"{name} {array.dtype} {array.shape} {int(content[:whole].view(np.uint64).sum()) + rest}"


def combined(lines: Iterable[str]) -> str:
    """One checksum of all arrays' lines, independent of their order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, order="C").reshape(-1).view(np.uint8)
