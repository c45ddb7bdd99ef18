"""Reads a pickle as data: a small interpreter of the instructions that torch and pickle write.

A pickle is a program. Python's own unpickler imports the names in it, calls them, and does any
amount of work that a few bytes request. Here no name is ever imported: each becomes a `Name`, which
may only be called if the caller gave it a stand-in. Every instruction takes bounded time and
memory, and their number is bounded. Protocols 2 to 5, without what no checkpoint uses (out-of-band
buffers, the extension registry, the text forms of protocol 0).
"""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, no_type_check

from reground_jax.basics.wording import shown

# An array takes 45 instructions: a Stable Diffusion file with optimizer state has 350,000.
MOST_INSTRUCTIONS = 3_000_000
LONGEST_KEY = 2**16  # characters: equal keys are compared each time they are set
LONGEST_NUMBER = 255  # bytes


class BadPickle(ValueError):
    """The file cannot be read; the message says why, and what to do."""


class RefusedPickle(BadPickle):
    """The pickle contains a name, or uses one in a way, that no checkpoint of arrays needs."""


def refused(path: Path, use: str) -> RefusedPickle:
    return RefusedPickle(
        f"{path} {use}, which could run code and which no checkpoint of arrays needs: refused; "
        "save only its tensors, as safetensors"
    )


class Name:
    """A name in a pickle, and what may be done with it; as a value, it is just a name."""

    __slots__ = ("name", "call", "creates")

    def __init__(
        self,
        name: str,
        call: Callable[[tuple[Any, ...]], Any] | None = None,
        creates: bool = False,
    ) -> None:
        """call: returns the result for the arguments, or raises ValueError with a short reason;
        None refuses calls. creates: whether it is a class that may be instantiated, as `Inert`.
        """
        self.name, self.call, self.creates = name, call, creates

    def __repr__(self) -> str:
        return self.name


class Inert:
    """Stands in for an object of a foreign class: keeps its state, and does nothing."""

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<{self.name}>"


KEYS = frozenset({int, float, bool, type(None), Name, Inert})  # of dicts, besides str and bytes


@no_type_check  # run-time checks, as in tests, would dominate the time of functions this short
class Reader:
    """Runs over one pickle, or several in a row."""

    def __init__(
        self,
        path: Path,
        data: bytes,
        find: Callable[[str, str], Name],
        persistent: Callable[[Any], Any],
        at: int = 0,
    ) -> None:
        """path: for messages. find: returns the Name of a module's name, or raises RefusedPickle.
        persistent: returns what a persistent id stands for, a storage in torch's files. at: where
        the pickle begins in `data`; another one may follow.
        """
        self.path, self.data, self.find, self.persistent = path, data, find, persistent
        self.at = at
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Runs the pickle and returns its value; the next call, the one that follows it.

        Raises BadPickle.
        """
        data, stop = self.data, pickle.STOP[0]
        try:
            for _ in range(MOST_INSTRUCTIONS):
                code = data[self.at]
                self.at += 1
                if code == stop:
                    return self.stack.pop()
                handler = INSTRUCTIONS.get(code)
                if handler is None:
                    raise self.damaged(f"{bytes([code])!r} at {self.at - 1} is not an instruction")
                handler(self)
        except IndexError:
            raise self.damaged("it ends early, or uses values that it never created") from None
        except KeyError:
            raise self.damaged("it uses a value that it never stored") from None
        except BadPickle:
            raise
        except ValueError as error:  # from a stand-in, or for text that is not UTF-8
            raise self.damaged(str(error)) from error
        raise BadPickle(
            f"{self.path}: its pickle has more than {MOST_INSTRUCTIONS} instructions; save only "
            "its tensors, as safetensors"
        )

    def damaged(self, reason: str) -> BadPickle:
        return BadPickle(
            f"{self.path}: its pickle is damaged ({reason}); copy or download the file again"
        )

    # Bytes of the program

    def take(self, count: int) -> bytes:
        chunk = self.data[self.at : self.at + count]
        if len(chunk) != count:
            raise self.damaged("it ends early")
        self.at += count
        return chunk

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 256)
        if end < 0:
            raise self.damaged("an unterminated name")
        text = str(self.data[self.at : end], "utf-8")
        self.at = end + 1
        return text

    # Numbers and texts

    def signed(self) -> None:
        self.stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def long(self, size: int) -> None:
        length = self.number(size)
        if length > LONGEST_NUMBER:
            raise self.damaged(f"a number of {length} bytes")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    def real(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    def text(self, size: int) -> None:
        self.stack.append(str(self.take(self.number(size)), "utf-8", "surrogatepass"))

    def bytes(self, size: int) -> None:
        self.stack.append(self.take(self.number(size)))

    # Containers

    def since_mark(self) -> list[Any]:
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise self.damaged("a tuple of too few values")
        self.stack[-count:] = [items]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Inert:  # whose items are ignored
            raise self.damaged(f"{shown(target)} is not a list")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Inert:
            return
        if type(target) is not dict or len(items) % 2:
            raise self.damaged(f"{shown(target)} is assigned {len(items)} keys and values")
        for at in range(0, len(items), 2):
            if not _cheap(items[at]):
                raise BadPickle(
                    f"{self.path} has a dict with the key {shown(items[at])}; keys must be short "
                    "strings, numbers or names"
                )
            target[items[at]] = items[at + 1]

    def dict(self) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.set_items(items)

    # Memo

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, size: int) -> None:
        self.stack.append(self.memo[self.number(size)])

    # Names and their uses

    def name(self, module: Any, name: Any) -> None:
        if not (type(module) is str and type(name) is str and len(module) + len(name) <= 512):
            raise self.damaged(f"a name of {shown(module)} and {shown(name)}")
        self.stack.append(self.find(module, name))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def call(self) -> None:
        arguments, callee = self.stack.pop(), self.stack[-1]
        if type(callee) is not Name or callee.call is None:
            raise refused(self.path, f"calls {shown(callee)}")
        if type(arguments) is not tuple:
            raise self.damaged(f"{callee.name} is called with {shown(arguments)}")
        self.stack[-1] = callee.call(arguments)

    def create(self, count: int) -> None:
        """Replaces a class and its `count` arguments by a new object."""
        del self.stack[-count:]
        kind = self.stack[-1]
        if type(kind) is not Name or not kind.creates:
            raise refused(self.path, f"creates an instance of {shown(kind)}")
        self.stack[-1] = Inert(kind.name)

    def build(self) -> None:
        """Sets an object's state. A dict's, the attributes of torch's state dicts, is ignored."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Inert:
            target.state = state if type(state) is dict else {}
        elif type(target) is not dict:
            raise refused(self.path, f"sets the state of {shown(target)}")

    def persistent_id(self) -> None:
        self.stack[-1] = self.persistent(self.stack[-1])


def _cheap(key: Any) -> bool:
    """Whether a key is cheap to hash and compare; large ints can be made to collide."""
    if type(key) in (str, bytes):
        return len(key) <= LONGEST_KEY
    return type(key) in KEYS and not (type(key) is int and key.bit_length() > 64)


def _push(value: Any) -> Callable[[Reader], None]:
    return lambda reader: reader.stack.append(value)


INSTRUCTIONS: dict[int, Callable[[Reader], Any]] = {
    code[0]: handler
    for code, handler in (
        (pickle.PROTO, lambda r: r.take(1)),
        (pickle.FRAME, lambda r: r.take(8)),
        (pickle.MARK, lambda r: r.marks.append(len(r.stack))),
        (pickle.POP, lambda r: r.stack.pop()),
        (pickle.POP_MARK, Reader.since_mark),
        (pickle.DUP, lambda r: r.stack.append(r.stack[-1])),
        (pickle.NONE, _push(None)),
        (pickle.NEWTRUE, _push(True)),
        (pickle.NEWFALSE, _push(False)),
        (pickle.BININT, Reader.signed),
        (pickle.BININT1, lambda r: r.stack.append(r.number(1))),
        (pickle.BININT2, lambda r: r.stack.append(r.number(2))),
        (pickle.LONG1, lambda r: r.long(1)),
        (pickle.LONG4, lambda r: r.long(4)),
        (pickle.BINFLOAT, Reader.real),
        (pickle.SHORT_BINUNICODE, lambda r: r.text(1)),
        (pickle.BINUNICODE, lambda r: r.text(4)),
        (pickle.BINUNICODE8, lambda r: r.text(8)),
        (pickle.SHORT_BINBYTES, lambda r: r.bytes(1)),
        (pickle.BINBYTES, lambda r: r.bytes(4)),
        (pickle.BINBYTES8, lambda r: r.bytes(8)),
        (pickle.BYTEARRAY8, lambda r: r.bytes(8)),
        (pickle.EMPTY_TUPLE, _push(())),
        (pickle.TUPLE1, lambda r: r.tuple(1)),
        (pickle.TUPLE2, lambda r: r.tuple(2)),
        (pickle.TUPLE3, lambda r: r.tuple(3)),
        (pickle.TUPLE, lambda r: r.stack.append(tuple(r.since_mark()))),
        # Sets are read as lists, so that their elements need not be hashed.
        (pickle.EMPTY_LIST, lambda r: r.stack.append([])),
        (pickle.EMPTY_SET, lambda r: r.stack.append([])),
        (pickle.LIST, lambda r: r.stack.append(r.since_mark())),
        (pickle.FROZENSET, lambda r: r.stack.append(r.since_mark())),
        (pickle.APPEND, lambda r: r.extend([r.stack.pop()])),
        (pickle.APPENDS, lambda r: r.extend(r.since_mark())),
        (pickle.ADDITEMS, lambda r: r.extend(r.since_mark())),
        (pickle.EMPTY_DICT, lambda r: r.stack.append({})),
        (pickle.DICT, Reader.dict),
        (pickle.SETITEM, lambda r: r.set_items([r.stack.pop(-2), r.stack.pop()])),
        (pickle.SETITEMS, lambda r: r.set_items(r.since_mark())),
        (pickle.BINPUT, lambda r: r.put(r.number(1))),
        (pickle.LONG_BINPUT, lambda r: r.put(r.number(4))),
        (pickle.MEMOIZE, lambda r: r.put(len(r.memo))),
        (pickle.BINGET, lambda r: r.get(1)),
        (pickle.LONG_BINGET, lambda r: r.get(4)),
        (pickle.GLOBAL, lambda r: r.name(r.line(), r.line())),
        (pickle.STACK_GLOBAL, Reader.stack_name),
        (pickle.REDUCE, Reader.call),
        (pickle.NEWOBJ, lambda r: r.create(1)),
        (pickle.NEWOBJ_EX, lambda r: r.create(2)),
        (pickle.BUILD, Reader.build),
        (pickle.BINPERSID, Reader.persistent_id),
    )
}
