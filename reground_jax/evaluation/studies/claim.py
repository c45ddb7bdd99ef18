"""Whose folder it is: study.json and the layouts of a study, written once and compared after."""

import json
from collections.abc import Mapping
from typing import Any

from reground_jax.basics.identity import differences, listed
from reground_jax.basics.json_text import parse_json
from reground_jax.batch.store import Store
from reground_jax.settings import Settings

STUDY, SHEETS = "study.json", "parts"


def cases_path(name: str) -> str:
    """Where the layouts of a set of cases are."""
    return f"cases/{name}.jsonl"


def claim(store: Store, facts: Mapping[str, Any], inputs: Mapping[str, bytes]) -> None:
    """Writes what a study depends on, or raises ValueError if another study is there.

    facts: with its "settings". inputs: the layouts of each set of cases.
    """
    out = store.url
    if SHEETS in store.names(""):
        raise ValueError(
            f"{out} holds a study of an earlier version, which kept its images in {SHEETS}/: "
            "choose another --out"
        )
    if not store.create(STUDY, json.dumps(facts).encode() + b"\n"):
        _check(f"{out}/{STUDY}", store.read(STUDY), facts, out)
    for name, lines in inputs.items():
        path = cases_path(name)
        if not store.create(path, lines) and store.read(path) != lines:
            raise ValueError(
                f"{out} holds another study: the layouts of {name!r} are not those in its {path}. "
                "Give the same files to resume it, or choose another --out"
            )


def _check(path: str, content: bytes, mine: Mapping[str, Any], out: str) -> None:
    try:
        theirs = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; choose another --out") from error
    if not isinstance(theirs, dict):
        raise ValueError(f"{path} is not the record of a study: choose another --out")
    if isinstance(theirs.get("settings"), dict):  # settings that are newer have their defaults
        theirs["settings"] = Settings().to_json() | theirs["settings"]
    if found := differences(theirs, mine):
        raise ValueError(
            f"{out} holds another study: {listed(found)}. Repeat the old values to resume it, or "
            "choose another --out"
        )
