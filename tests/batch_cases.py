"""Inputs, commands and outputs that the tests of `batch` share; the sampler stubbed."""

import hashlib
import json
from pathlib import Path

from reground_jax.cli import main

DATA = Path(__file__).parent / "data"
SMALL = ["--unit-lines", "4", "--batch-size", "2"]


def layout(number: int, **changes) -> dict:
    box = [0.1, 0.2, 0.5, 0.9]
    return {
        "id": f"cat-{number}",
        "prompt": f"cat {number}",
        "phrases": ["a cat"],
        "boxes": [box],
    } | changes


def write_lines(path: Path, lines: list) -> Path:
    """Writes one line each: objects as JSON, strings as they are."""
    texts = (
        line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines
    )
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return path


def generate(layouts: Path, out: Path | str, *options: str) -> int:
    return main(["batch", str(layouts), "--out", str(out), *SMALL, *options])


def refusal(capsys, layouts: Path, out: Path | str, *options: str) -> str:
    capsys.readouterr()
    assert generate(layouts, out, *options) == 2
    return capsys.readouterr().err


def files(out: Path) -> dict[str, str]:
    """Checksums of all images and metadata by name."""
    found = [path for name in ("images", "shards") for path in (out / name).rglob("*")]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.is_file()
    }


def metadata(out: Path) -> list[dict]:
    texts = (path.read_text() for path in sorted(out.glob("images/*/metadata.jsonl")))
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    return [row | {name: json.loads(row[name]) for name in ("layout", "settings")} for row in rows]


def rejected(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
