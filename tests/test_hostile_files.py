"""Strangers' tensor files, made to run code, to hang or to fill the memory: each ends with one
sentence, within limits that the kernel sets.
"""

import re
import sys

import pytest

from tests import hostile
from tests.hostile import CANARY, Case, Limits, others, pickles, safetensors, zips
from tests.hostile.parts import call, program, torch_zip

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="limits on memory, pipes and /dev are Linux's here"
)
FAMILIES = {
    "pickles": pickles.cases,
    "zips": zips.cases,
    "safetensors": safetensors.cases,
    "others": others.cases,
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


SLOW = program(pickles.TUPLES + b"0}h\x00Ns")  # a dict key of 2**40 empty tuples
LARGE = program(b"N", b"r\x00\x00\x00\x10")  # kept at 2**28: a table of 4 GB in Python's unpickler
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
def test_a_reader_without_the_care_is_found_out(tmp_path, content, opener, found):
    cases = [Case("x.pt", content, "a sentence", opener=opener)]
    limits = Limits(seconds=1, wall=5 if opener == "waits" else 600)
    results = hostile.run(cases, tmp_path / "files", OPENERS, limits)
    (problem,) = hostile.problems(cases, results)
    assert re.search(found, problem), problem
