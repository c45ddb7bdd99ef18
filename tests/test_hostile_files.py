"""Strangers' tensor files that try to run code, to hang or to fill the memory.

Each ends with a one-sentence error, within limits that the kernel enforces.
"""

import io
import random
import re
import sys
from collections import Counter

import pytest
import torch

from tests import hostile
from tests.hostile import (
    CANARY,
    LONGEST,
    Case,
    Limits,
    loras,
    openers,
    others,
    pickles,
    safetensors,
    zips,
)
from tests.hostile.child import read
from tests.hostile.parts import call, program, tensor, torch_zip

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="limits on memory, pipes and /dev are Linux's here"
)
FAMILIES = {
    "pickles": pickles.cases,
    "zips": zips.cases,
    "safetensors": safetensors.cases,
    "others": others.cases,
    "loras": loras.cases,
}
OPENERS = "tests.hostile.openers"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_hostile_file_ends_with_one_sentence_within_the_limits(tmp_path, family):
    cases = FAMILIES[family]()
    assert len({case.name for case in cases}) == len(cases)
    results = hostile.run(cases, tmp_path / "files", OPENERS)
    problems = hostile.problems(cases, results)
    assert not problems, "\n".join(problems)


def test_there_are_more_than_two_hundred_of_them():
    refused = [case for cases in FAMILIES.values() for case in cases() if case.says != "reads"]
    assert len(refused) >= 200


def damaged(content: bytes, source: random.Random) -> bytes:
    """A file with a few bytes changed, lost, repeated or set to all ones."""
    changed = bytearray(content)
    for _ in range(source.choice([1, 1, 2, 4])):
        at, other = source.randrange(len(changed)), source.randrange(len(changed))
        kind = source.randrange(4)
        if kind == 0:
            changed[at] = source.randrange(256)
        elif kind == 1:
            del changed[at : at + source.randrange(1, 9)]
        elif kind == 2:
            changed[at:at] = changed[other : other + source.randrange(1, 30)]
        else:
            changed[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(changed)


def test_a_damaged_file_reads_or_ends_with_one_sentence(tmp_path):
    honest = program({"state_dict": {"a": tensor()}, "epoch": 3, "x": [(1, None), 2.5, "b"]})
    source, outcomes = random.Random(0), Counter()
    old = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": torch.zeros(5)}, old, _use_new_zipfile_serialization=False)
    for turn in range(1200):
        made = damaged(honest, source)
        content = (
            torch_zip(made),
            damaged(zips.GOOD, source),
            damaged(safetensors.safetensors(safetensors.TEXT), source),
            damaged(old.getvalue(), source),
        )[turn % 4]
        (tmp_path / "x").write_bytes(content)
        outcome, message = read(openers.open_tensors, str(tmp_path / "x"))
        assert outcome == "reads" or "ValueError" in outcome.split(), (outcome, message, content)
        assert message.isprintable() and len(message) < LONGEST, (message, content)
        outcomes[outcome.split()[0]] += 1
    assert min(outcomes[kind] for kind in ("reads", "BadPickle", "BadZip", "ValueError")) > 20


SLOW = program(pickles.TUPLES + b"0}h\x00Ns")  # a dict key of 2**40 empty tuples
LARGE = program(b"N", b"r\x00\x00\x00\x10")  # put at 2**28: a table of 4 GB in Python's unpickler
CODE = program({"a": call("builtins", "eval", f"open({CANARY!r}, 'w').close()")})


@pytest.mark.parametrize(
    ("content", "opener", "found"),
    [
        (torch_zip(SLOW), "naive", "ended the process, or waited forever"),
        (torch_zip(LARGE), "naive", "the error is no ValueError .*MemoryError"),
        (torch_zip(CODE), "naive", "its code has run"),
        (torch_zip(program(b"h\x07")), "naive", "the error is no ValueError .*UnpicklingError"),
        (torch_zip(program({"a": 1})), "naive", "it was read"),
        (b"", "prints", "more than a line"),
        (b"", "ends", "ended the process"),
        (others.FILES["pipe.ckpt"][0], "waits", "waited forever"),
    ],
)
def test_a_careless_reader_is_detected(tmp_path, content, opener, found):
    cases = [Case("x.pt", content, "a sentence", opener=opener)]
    limits = Limits(seconds=1, wall=5 if opener == "waits" else 600)
    results = hostile.run(cases, tmp_path / "files", OPENERS, limits)
    (problem,) = hostile.problems(cases, results)
    assert re.search(found, problem), problem
