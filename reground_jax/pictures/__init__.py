"""`Picture`: an image that a request refers to, in a file or in memory, as one value.

decoding.py    strangers' files to images, within limits; upright, as RGB
pixels.py      images to what the networks read

Nothing here imports NumPy or Pillow until an image is opened.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reground_jax.basics.fields import check_name
from reground_jax.basics.home import expand_home
from reground_jax.basics.small_files import local_path, read_small
from reground_jax.basics.wording import named, shown

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 2**27  # of a file
GIVE = "give a path, a PIL image or a uint8 array [H, W], [H, W, 3] or [H, W, 4]"
DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in a file or in memory; make one with `Picture.of`.

    path  absolute; None for an image in memory

    Pictures are equal, and have the same hash, if their SHA-256 is the same. A file is not read
    before its checksum or its pixels are needed; from then on it must not change. What reads it
    raises ValueError that names it.
    """

    path: Path | None
    _sha256: str | None = field(default=None, repr=False)
    _image: Any = field(default=None, repr=False)  # a PIL image

    @classmethod
    def of(
        cls, value: Any, folder: str | Path | None = None, *, name: str = "picture"
    ) -> "Picture":
        """A picture from a path, a PIL image, a uint8 array, a Picture or its JSON form.

        folder: what relative paths are relative to; by default, the working directory. name: for
        messages. A path in a string may come from anywhere, so it must not lead to another machine;
        a `Path` may. Raises ValueError.
        """
        if isinstance(value, Picture):
            return value
        if isinstance(value, Path):
            return cls(Path(folder or ".").absolute() / expand_home(value))
        if isinstance(value, str):
            return cls(Path(folder or ".").absolute() / _path(value, name))
        if isinstance(value, dict):
            return cls.from_json(value, folder, name=name)
        return _in_memory(value, name)

    @classmethod
    def from_json(
        cls, value: Any, folder: str | Path | None = None, *, name: str = "picture"
    ) -> "Picture":
        """Inverse of `to_json`; a file that differs from its recorded SHA-256 is never used.

        A string is a path, and so is an object without "sha256". Otherwise as `of`.
        """
        if isinstance(value, str):
            return cls.of(value, folder, name=name)
        if not isinstance(value, dict):
            raise ValueError(f'{name} is {shown(value)}: give a path, or {{"path": …}}')
        for key in value:
            check_name(f"field of {name}", key, ("path", "sha256"))
        path, sha256 = value.get("path"), value.get("sha256")
        if path is None and sha256 is None:
            raise ValueError(f"{name} has neither a path nor a sha256: give a path")
        if path is not None and not isinstance(path, str):
            raise ValueError(f"path of {name} is {shown(path)}: it must be a string or null")
        if sha256 is not None and not (
            isinstance(sha256, str) and len(sha256) == 64 and DIGITS.issuperset(sha256)
        ):
            raise ValueError(
                f"sha256 of {name} is {shown(sha256)}: it must have 64 hexadecimal digits"
            )
        if path is None:
            return cls(None, sha256)
        return cls(cls.of(path, folder, name=name).path, sha256)

    def to_json(self) -> dict[str, str | None]:
        """{"path", "sha256"}; an image in memory has no path, and must be given again."""
        return {"path": None if self.path is None else str(self.path), "sha256": self.sha256}

    @property
    def name(self) -> str:
        """The picture's name in messages."""
        if self.path is not None:
            return f"picture {named(str(self.path))}"
        if self._image is None:
            return f"the picture with SHA-256 {str(self._sha256)[:12]}…"
        return f"the picture in memory ({self._image.width} x {self._image.height} pixels)"

    @property
    def sha256(self) -> str:
        """Of the file's bytes; of an image in memory, of its mode, size, colors and pixels."""
        if self._sha256 is None:
            self._read()
        assert self._sha256 is not None
        return self._sha256

    @property
    def has_checksum(self) -> bool:
        """Whether it is known which bytes these are, so that no others will be read."""
        return self._sha256 is not None

    def check(self) -> None:
        """Raises ValueError unless this is an image that can be read, and that is unchanged."""
        self.open()

    def open(self) -> "Image.Image":
        """The image as it is stored, in any mode. Raises ValueError that says what is wrong."""
        from reground_jax.pictures.decoding import decode

        if self._image is not None:
            return self._image.copy()
        content = self._read()
        try:
            return decode(content)
        except ValueError as error:
            raise ValueError(f"cannot read {self.name}: {error}") from error

    def _read(self) -> bytes:
        """The file's bytes. Records their checksum, or compares it with the recorded one."""
        if self.path is None:
            raise ValueError(
                f"{self.name} was an image in memory, of which only the checksum was recorded: "
                "give the image again"
            )
        try:
            content = read_small(self.path, MAX_BYTES)
        except FileNotFoundError as error:
            raise ValueError(f"cannot read {self.name}: there is no such file") from error
        except ValueError as error:
            raise ValueError(f"cannot read {self.name}: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if self._sha256 is None:
            object.__setattr__(self, "_sha256", found)
        elif found != self._sha256:
            raise ValueError(
                f"{self.name} changed since its checksum was recorded: SHA-256 is {found[:12]}…, "
                f"not {self._sha256[:12]}…; restore the file, or give the picture again"
            )
        return content

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Picture):
            return NotImplemented
        return self is other or self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


def _path(text: str, name: str) -> Path:
    if "://" in text:
        raise ValueError(f"{name} is {shown(text)}, a URL: download it, and give the file")
    if not text:
        raise ValueError(f"{name} is an empty path: {GIVE}")
    path = local_path(text)
    if path is None:
        raise ValueError(
            f"{name} is {shown(text)}, which is not opened, because it may be on another machine: "
            "copy it to this one, and give its path (in Python, a pathlib.Path may lead anywhere)"
        )
    return path


def _in_memory(value: Any, name: str) -> Picture:
    import numpy as np
    from PIL import Image

    from reground_jax.pictures.decoding import upright

    if isinstance(value, np.ndarray):
        fits = value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4))
        if value.dtype != np.uint8 or not fits or not value.size:
            raise ValueError(f"{name} is {value.dtype}{list(value.shape)}: {GIVE}")
        image = Image.fromarray(value)
    elif isinstance(value, Image.Image):
        image = upright(value.copy())
    else:
        raise ValueError(f"{name} is {shown(value)}: {GIVE}")
    colors = f"{image.getpalette()} {image.info.get('transparency')}"
    header = f"{image.mode} {image.width} {image.height} {colors}"
    return Picture(None, hashlib.sha256(header.encode() + image.tobytes()).hexdigest(), image)
