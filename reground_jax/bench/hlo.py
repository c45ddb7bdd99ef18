"""Reading a compiled program's text: its operations, loops, collectives, and whose they are.

Operations belong to parts of the U-Net by the scopes that they were written in (`jax.named_scope`
in the networks); the parts are the counter's. `estimated_cycles` is what TPU's compiler expects.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# The first row whose scopes are all around an operation names its part, as the counter does.
PARTS = (
    ("fuser_scores", ("fuser", "scores")),
    ("fuser_feed_forward", ("fuser", "feed_forward")),
    ("fuser_projections", ("fuser",)),
    ("fuser_projections", ("packed_projection",)),
    ("cross_scores", ("cross_attention", "scores")),
    ("cross_projections", ("cross_attention",)),
    ("self_scores", ("self_attention", "scores")),
    ("feed_forward", ("feed_forward",)),
    ("self_projections", ("block",)),
    ("proj_in_out", ("transformer",)),
    ("shortcuts", ("shortcut",)),
    ("resnets", ("resnet",)),
    ("resampling", ("upsample",)),
    ("resampling", ("downsample",)),
    ("conv_in_out", ("unet",)),
)
OTHER = "other"  # the solver, guidance, and copies that the compiler added
COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all",
    "collective-broadcast", "send", "recv",
)  # fmt: skip
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "f64": 8, "pred": 1, "s8": 1, "u8": 1}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-<>]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ((?:\([^=]*?\)|\S+)) ([\w\-]+)\(")
_CALLED = re.compile(r"(?:to_apply|true_computation|false_computation|calls)=%?([\w.\-]+)")


class Operation(NamedTuple):
    name: str
    shape: str
    kind: str  # HLO's opcode
    line: str

    @property
    def estimated_cycles(self) -> int:
        """By the cost model of TPU's compiler; 0 where it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        return int(found[1]) if found else 0

    @property
    def bytes(self) -> int:
        """Of its result."""
        return sum(
            BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
            for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", self.shape)
        )


class Executed(NamedTuple):
    operation: Operation
    times: int  # in one step: known loops multiply, the loop over the steps does not
    stepped: bool  # inside a loop whose number of passes the program is given


@dataclass(frozen=True)
class Program:
    """A module of optimized HLO."""

    computations: dict[str, list[Operation]]
    entry: str
    parts: dict[str, str]  # of every operation, by name

    @classmethod
    def of(cls, text: str) -> "Program":
        computations: dict[str, list[Operation]] = {}
        entry = current = ""
        for line in re.sub(r"/\*index=\d+\*/", "", text).splitlines():
            if head := _COMPUTATION.match(line):
                current = head[2]
                computations[current] = []
                entry = current if head[1] else entry
            elif line == "}":
                current = ""
            elif current and (found := _OPERATION.match(line)):
                computations[current].append(Operation(found[1], found[2], found[3], line))
        return cls(computations, entry, operation_parts(text))

    def executed(
        self, computation: str | None = None, times: int = 1, stepped: bool = False
    ) -> Iterator[Executed]:
        """Everything that runs, by the number of times; a branch counts as if it were taken."""
        for operation in self.computations[computation or self.entry]:
            if operation.kind == "while":
                trips = self._trips(operation.line)
                body = re.search(r"body=%?([\w.\-]+)", operation.line)
                assert body is not None
                yield from self.executed(body[1], times * (trips or 1), stepped or trips is None)
            elif operation.kind in ("call", "conditional"):
                for callee in _CALLED.findall(operation.line):
                    yield from self.executed(callee, times, stepped)
            else:
                yield Executed(operation, times, stepped)

    def _trips(self, line: str) -> int | None:
        """Of a while; None where it is an argument of the program."""
        if known := re.search(r'known_trip_count[^}]*?"n":"(\d+)"', line):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", line)
        assert condition is not None
        body = "\n".join(operation.line for operation in self.computations[condition[1]])
        constants = re.findall(r"s32\[\][^=]*constant\((\d+)\)", body)
        return int(constants[0]) if len(constants) == 1 and "LT" in body else None

    def collectives(self) -> dict[str, dict[str, int]]:
        """Number and bytes per step, by kind; empty if the devices do not talk to each other."""
        number, size = Counter[str](), Counter[str]()
        for operation, times, _ in self.executed():
            kind = operation.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                number[kind] += times
                size[kind] += times * operation.bytes
        return {kind: {"count": number[kind], "bytes": size[kind]} for kind in number}

    def cycles(self) -> tuple[Counter[str], Counter[str]]:
        """Estimated cycles by part: of one step, and of what is outside the loop over steps."""
        inside, outside = Counter[str](), Counter[str]()
        for operation, times, stepped in self.executed():
            if cycles := operation.estimated_cycles:
                spent = inside if stepped else outside
                spent[self.parts.get(operation.name, OTHER)] += times * cycles
        return inside, outside


def operation_parts(text: str) -> dict[str, str]:
    """Part of every operation of a compiled program's text, by the scopes that it is in."""
    parts: dict[str, str] = {}
    for name, rest in re.findall(r"^ *(?:ROOT )?%?([\w.-]+) = (.*)", text, re.M):
        if path := re.search(r'op_name="([^"]*)"', rest):
            parts[name] = part_of(scopes(path[1]))
        else:  # the compiler's own, such as half of a reduction: it belongs to what it reads
            reads = re.findall(r"%([\w.-]+)", rest.partition("(")[2].partition(")")[0])
            parts[name] = next((parts[read] for read in reads if read in parts), OTHER)
    return parts


def scopes(path: str) -> set[str]:
    """Names of the scopes in an operation's path: "block_0" and "transpose(jvp(block_0))" are
    a "block"."""
    names = (name.rstrip(")").rpartition("(")[2] for name in path.split("/"))
    return {re.sub(r"_\d+$", "", name) for name in names}


def part_of(scopes: set[str]) -> str:
    return next((part for part, needed in PARTS if scopes.issuperset(needed)), OTHER)
