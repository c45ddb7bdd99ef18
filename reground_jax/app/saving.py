"""Finished pictures in the folder that --out names."""

import itertools
from pathlib import Path

from reground_jax.basics import atomic


class Folder:
    """Where pictures are kept; without a path, nowhere."""

    def __init__(self, path: Path | None):
        """Raises OSError if the folder cannot be made."""
        self.path = path
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, content: bytes) -> Path | None:
        """Writes a file of this name, or name-2 and so on if it exists. Raises OSError."""
        if self.path is None:
            return None
        wanted = self.path / name
        names = (wanted.with_stem(f"{wanted.stem}-{n}") for n in itertools.count(2))
        path = next(p for p in itertools.chain([wanted], names) if not p.exists())
        atomic.write_bytes(path, content)
        return path
