"""`generate --from` with strangers' PNGs: each ends soon, in little memory, with one sentence.

One process with resource limits tries all files, so that a fault ends that process and not the
machine. It reports on each of them.
"""

import functools
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reground_jax.images import Recipe, encode_png, read_recipe
from reground_jax.layout import Layout
from reground_jax.settings import Settings

CPU_SECONDS = 120  # of the process, for all files; they take 2
MEMORY = 6 * 2**30  # of address space, most of which JAX and BLAS only reserve
MORE_MEMORY = 250 * 2**20  # that all files together may add to the process; they add 75 MiB
SIGNATURE = b"\x89PNG\r\n\x1a\n"
RECIPE = Recipe(Layout("a cat"), Settings(), 0, checkpoint="someone/model", checksum="0" * 64)


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png(*chunks: bytes, side: int = 1) -> bytes:
    """A PNG whose header claims sides of `side`, but which has no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"".join([SIGNATURE, header, *chunks, chunk(b"IEND", b"")])


def text(value: Any) -> bytes:
    return chunk(b"tEXt", b"reground\0" + value) if isinstance(value, bytes) else said(value)


def said(value: Any) -> bytes:
    return chunk(b"tEXt", b"reground\0" + json.dumps(value).encode())


def changed(*path_and_value: Any) -> bytes:
    """A PNG with a recipe in which one value is changed."""
    *path, last, value = path_and_value
    recipe = json.loads(json.dumps(RECIPE.to_json()))
    part = recipe
    for name in path:
        part = part[name]
    part[last] = value
    return png(said(recipe))


def without(name: str) -> bytes:
    return png(said({k: v for k, v in RECIPE.to_json().items() if k != name}))


def compressed(kind: bytes, content: bytes) -> bytes:
    head = {b"zTXt": b"reground\0\0", b"iTXt": b"reground\0\1\0\0\0"}[kind]
    return png(chunk(kind, head + content))


@functools.cache
def bomb(size: int) -> bytes:
    """`size` blanks, compressed to a thousandth, without ever being in memory."""
    stream, block = zlib.compressobj(9), b" " * 2**20
    return b"".join(stream.compress(block) for _ in range(size // 2**20)) + stream.flush()


def whole() -> bytes:
    return encode_png(np.zeros((64, 64, 3), np.uint8), RECIPE)


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    return out.getvalue()


FILES = {
    # sizes that would take all memory, or all time
    "height": (lambda: changed("settings", "height", 8_000_000_000), "height is 8000000000"),
    "side": (lambda: changed("settings", "width", 65536), "width is 65536"),
    "boxes": (lambda: changed("settings", "max_boxes", 10**9), "max_boxes is 1000000000"),
    "steps": (lambda: changed("settings", "num_steps", 10**9), "num_steps is 1000000000"),
    "no multiple": (lambda: changed("settings", "height", 8191), "height is 8191"),
    "no size": (lambda: changed("settings", "height", 0), "height is 0"),
    # wrong types and values
    "height text": (lambda: changed("settings", "height", "512"), "height is '512'"),
    "height list": (lambda: changed("settings", "height", [512]), r"height is \[512\]"),
    "steps true": (lambda: changed("settings", "num_steps", True), "num_steps is True"),
    "gamma NaN": (lambda: changed("settings", "gamma", float("nan")), "gamma is nan"),
    "gamma list": (lambda: changed("settings", "gamma", [1] * 10**5), r"gamma is \[1, 1"),
    "scale infinite": (lambda: changed("settings", "guidance_scale", float("inf")), "is inf"),
    "solver": (lambda: changed("settings", "solver", {"a": 1}), "solver .* is unknown"),
    "settings list": (lambda: changed("settings", []), r"settings are \[\]"),
    "settings null": (lambda: changed("settings", None), "settings are None"),
    "unknown setting": (lambda: changed("settings", "scheduler", 1), "settings field 'scheduler'"),
    "layout text": (lambda: changed("layout", "a cat"), "layout is 'a cat'"),
    "layout field": (lambda: changed("layout", "image", "/etc/passwd"), "layout field 'image'"),
    "prompt number": (lambda: changed("layout", "prompt", 7), "prompt of .* is 7"),
    "surrogate": (lambda: changed("layout", "prompt", "a \ud800 dog"), "an unpaired surrogate"),
    "phrases": (lambda: changed("layout", "phrases", ["a"] * 2000), "2000 phrases and 0 boxes"),
    "box NaN": (
        lambda: changed("layout", {"prompt": "", "phrases": ["b"], "boxes": [[0, 0, math.nan, 1]]}),
        "every number must be finite",
    ),
    "seed large": (lambda: changed("seed", 2**32), "seed is 4294967296"),
    "seed negative": (lambda: changed("seed", -1), "seed is -1"),
    "seed true": (lambda: changed("seed", True), "seed is True"),
    "seed fraction": (lambda: changed("seed", 1.5), "seed is 1.5"),
    "seed text": (lambda: changed("seed", "0"), "seed is '0'"),
    "seed endless": (lambda: changed("seed", 10**4000), "seed is 1000"),
    "format true": (lambda: changed("format", True), "recipe has format True"),
    "format 1.0": (lambda: changed("format", 1.0), "recipe has format 1.0"),
    "format 2": (lambda: changed("format", 2), "recipe has format 2"),
    "format list": (lambda: changed("format", [1]), r"recipe has format \[1\]"),
    "no format": (lambda: without("format"), "recipe has format None"),
    "no seed": (lambda: without("seed"), "recipe has no seed"),
    "no layout": (lambda: without("layout"), "recipe has no layout"),
    "no model": (lambda: without("checkpoint"), "does not say which model made it: add --model"),
    "model a list": (lambda: changed("checkpoint", ["emoji"]), r"checkpoint is \['emoji'\]"),
    "checksum a number": (lambda: changed("checksum", 5), "checksum is 5"),
    "checksum": (lambda: changed("checkpoint", "emoji"), r"checksum '000000000000'\), but 'emoji'"),
    "model endless": (lambda: changed("checkpoint", "a" * 10**6), "no model directory"),
    "model with codes": (lambda: changed("checkpoint", "\x1b[2J\n\r"), "no model directory"),
    "model half a character": (lambda: changed("checkpoint", "\ud800"), "no model directory"),
    "model with NUL": (lambda: changed("checkpoint", "a\0b"), "no model directory"),
    # JSON
    "list": (lambda: png(said([])), "recipe has format None"),
    "deep": (lambda: png(text(b"[" * 10**6)), "nested too deeply"),
    "deep objects": (lambda: png(text(b'{"a":' * 10**5)), "nested too deeply"),
    "digits": (lambda: png(text(b'{"format": ' + b"1" * 10**5 + b"}")), "is not JSON"),
    "no JSON": (lambda: png(text(b"{")), "is not JSON: Expecting property name"),
    "empty": (lambda: png(text(b"")), "is not JSON"),
    "many values": (lambda: png(text(b"[" + b"[]," * 10**6 + b"1]")), "recipe has format None"),
    "no UTF-8": (lambda: png(chunk(b"iTXt", b"reground\0\0\0\0\0\xff\xfe")), "not UTF-8"),
    # bombs
    "text bomb": (lambda: compressed(b"zTXt", bomb(2**29)), "longer than 4,194,304 bytes"),
    "text bomb, iTXt": (lambda: compressed(b"iTXt", bomb(2**29)), "longer than 4,194,304 bytes"),
    "long text": (lambda: png(text(b" " * 2**23)), "longer than 4,194,304 bytes"),
    "text of another": (
        lambda: png(chunk(b"zTXt", b"comment\0\0" + bomb(2**29))),
        "was not written by reground-jax",
    ),
    "pixel bomb": (lambda: png(side=2**31 - 1), "was not written by reground-jax"),
    "pixel bomb, recipe": (
        lambda: png(text(json.dumps(RECIPE.to_json()).encode()), side=100_000), "someone/model",
    ),
    "many parts": (lambda: SIGNATURE + chunk(b"abCD", b"") * 1_000_001, "than 1,000,000 chunks"),
    # damage
    "cut text": (lambda: compressed(b"zTXt", zlib.compress(b"{}" * 999)[:20]), "truncated|damaged"),
    "no zlib": (lambda: compressed(b"zTXt", b"\0" * 20), "its text is damaged"),
    "wrong sum": (lambda: png(chunk(b"tEXt", b"reground\0{}", crc=1)), "text is damaged"),
    "length beyond": (lambda: SIGNATURE + struct.pack(">I", 2**31) + b"tEXt", "it is truncated"),
    "cut in the pixels": (lambda: whole()[:-40], "it is truncated: its end is missing"),
    "cut in the text": (lambda: whole()[:100], "it is truncated"),
    "signature": (lambda: SIGNATURE, "it is truncated"),
    "nothing": (lambda: b"", "is not a PNG image"),
    "JPEG": (jpeg, "is not a PNG image"),
    "words": (lambda: b"not an image", "is not a PNG image"),
    # valid, but from a model that is not here
    "animated": (
        lambda: png(
            chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), said(RECIPE.to_json()),
            chunk(b"fdAT", b"\0" * 99),
        ),
        "was made with model 'someone/model', and no model directory with its checksum",
    ),
    "more fields": (lambda: changed("comment", {"by": "me"}), "someone/model"),
    "two texts": (lambda: png(said({}), said(RECIPE.to_json())), "someone/model"),
    "compressed": (
        lambda: compressed(b"zTXt", zlib.compress(json.dumps(RECIPE.to_json()).encode())),
        "someone/model",
    ),
    "international": (
        lambda: compressed(b"iTXt", zlib.compress(json.dumps(RECIPE.to_json()).encode())),
        "someone/model",
    ),
}  # fmt: skip
PLACES = {
    "pipe.png": (os.mkfifo, "a pipe, not a file"),
    "zero.png": (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
    "folder.png": (os.mkdir, "a folder, not a file"),
    "gone.png": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "loop.png": (lambda path: path.symlink_to("loop.png"), "cannot read image"),
}
CHILD = """
import contextlib, io, json, resource, sys
for kind, limit in zip((resource.RLIMIT_CPU, resource.RLIMIT_AS), map(int, sys.argv[1:3])):
    resource.setrlimit(kind, (limit, limit))
from reground_jax.cli import main
import reground_jax.model, reground_jax.convert.locate  # before memory is measured

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, reports = peak(), {}
for path in sys.argv[3:]:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = main(["generate", "--from", path, "--out", path + ".out.png"])
    reports[path] = [code, err.getvalue()]
print(json.dumps([peak() - before, reports]))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[int, dict[str, tuple[int, str]]]:
    """Bytes by which the process grew, and each file's exit code and message."""
    folder = tmp_path_factory.mktemp("strangers")
    for name, (content, _) in FILES.items():
        (folder / f"{name}.png").write_bytes(content())
    for name, (make, _) in PLACES.items():
        make(folder / name)
    names = sorted(path.name for path in folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(CPU_SECONDS), str(MEMORY), *names], cwd=folder,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(path.name for path in folder.iterdir()) == names  # nothing was written
    grown, reports = json.loads(done.stdout.splitlines()[-1])
    return grown, reports


SENTENCES = {f"{name}.png": message for name, (_, message) in FILES.items()} | {
    name: message for name, (_, message) in PLACES.items()
}


@pytest.mark.parametrize(("name", "message"), SENTENCES.items(), ids=SENTENCES)
def test_a_strangers_png_is_one_sentence(name, message, outcome):
    code, printed = outcome[1][name]
    assert code == 2
    (line,) = printed.splitlines()
    assert line.startswith("reground-jax: error: ") and len(line) < 600
    assert name in line and line.isprintable()
    assert re.search(message, line.replace(name, "FILE")), line


def test_all_of_them_together_take_little_memory(outcome):
    assert outcome[0] < MORE_MEMORY


def test_pixels_are_not_decoded_to_read_a_recipe(tmp_path, monkeypatch):

    def decoded(*_: object, **__: object) -> None:
        raise AssertionError("the picture is decoded")

    (tmp_path / "image.png").write_bytes(whole())
    monkeypatch.setattr(Image.Image, "load", decoded)
    monkeypatch.setattr(Image, "open", decoded)
    assert read_recipe(tmp_path / "image.png") == RECIPE
