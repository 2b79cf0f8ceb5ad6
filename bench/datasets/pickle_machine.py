"""Pickles read as data: what one would build, without running anything of it.

A pickle is a program, and running one from somebody else hands over the machine. This machine
follows only the instructions that writing lists of byte strings takes, in protocols 0 to 5 of
Python 2 and 3. It keeps where a byte string lies instead of its content, notes names of an
allow-list and calls as records to be recognised later, and imports and calls nothing. Its memory
follows the number of strings, not what the file claims.
"""

from __future__ import annotations

import codecs
import io
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from bench.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

# A pair takes 5 to 30 instructions and two images of 600 bytes or more. What one instruction can
# make the machine remember is below 200 bytes.
_FREE_INSTRUCTIONS = 20_000
_BYTES_PER_INSTRUCTION = 100

_RAW = "raw"
_ESCAPED = "string-escape"
_UTF8 = "utf-8"
_UNICODE_ESCAPE = "raw-unicode-escape"

WIDTH = {_RAW: 1, _ESCAPED: 4, _UTF8: 2, _UNICODE_ESCAPE: 6}
"""Most characters that a byte takes in each way of writing it."""


class Span(NamedTuple):
    """Where a string lies in the file, how it is written there, and whether it is text."""

    offset: int
    length: int
    codec: str = _RAW
    text: bool = False

    def content(self, stream: BinaryIO) -> bytes:
        """Return the string; text as latin1, the way in which old protocols carry bytes.

        Raises:
            ValueError: The bytes are not written in the codec.
        """
        stream.seek(self.offset)
        data = stream.read(self.length)
        if self.codec == _RAW:
            return data
        if self.codec == _ESCAPED:
            return codecs.escape_decode(data)[0]
        # One character beyond latin1 would make Python's string several times as large.
        beyond = (
            data.translate(None, bytes(range(0xC4)))
            if self.codec == _UTF8
            else data.count(b"\\") != data.count(b"\\u00")
        )
        if beyond:
            raise ValueError("text beyond latin1")
        return data.decode(self.codec).encode("latin-1")


class Name(NamedTuple):
    """A module's attribute that the pickle asks for, such as "numpy.dtype": never imported."""

    text: str


@dataclass(slots=True)
class Call:
    """A call that the pickle asks for: noted, never made."""

    name: str
    arguments: tuple[object, ...]
    state: object = None


_STRINGS = {
    b"U": ("<B", _RAW, False),
    b"T": ("<i", _RAW, False),
    b"C": ("<B", _RAW, False),
    b"B": ("<I", _RAW, False),
    b"\x8e": ("<Q", _RAW, False),
    b"\x96": ("<Q", _RAW, False),
    b"\x8c": ("<B", _UTF8, True),
    b"X": ("<I", _UTF8, True),
    b"\x8d": ("<Q", _UTF8, True),
}
_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i"}
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


class Machine:
    """Follows the instructions of a pickle that build lists, tuples and strings; refuses others.

    Args:
        stream: The file, opened.
        path: Its path, for messages.
        names: What the pickle may name, as "module.attribute"; `numpy.core` counts as
            `numpy._core`.
        longest: Length in bytes of the longest string that it may hold.
    """

    def __init__(self, stream: BinaryIO, path: Path, names: frozenset[str], longest: int) -> None:
        self._names = names
        self._longest_line = max(WIDTH.values()) * longest + len("''\n")
        self._stream = stream
        self._path = path
        self._size = stream.seek(0, io.SEEK_END)
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        stream.seek(0)

    def run(self) -> object:
        """Return what the pickle builds: spans, names, calls, constants, lists and tuples.

        Raises:
            DataError: The pickle is damaged, or needs anything else.
        """
        limit = _FREE_INSTRUCTIONS + self._size // _BYTES_PER_INSTRUCTION
        for _ in range(limit):
            code = self._take(1)
            if code == b".":
                return self._pop()
            self._step(code)
        raise self._error(
            f"has more than the {limit} instructions that images of its size account for"
        )

    def _step(self, code: bytes) -> None:
        if code in _STRINGS:
            layout, codec, text = _STRINGS[code]
            self._push_span(self._number(layout), codec, text)
        elif code in _NUMBERS:
            self._stack.append(self._number(_NUMBERS[code]))
        elif code in _CONSTANTS:
            self._stack.append(_CONSTANTS[code])
        elif code in _TUPLES:
            self._stack.append(tuple([self._pop() for _ in range(_TUPLES[code])][::-1]))
        else:
            self._step_otherwise(code)

    def _step_otherwise(self, code: bytes) -> None:
        match code:
            case b"(":
                self._marks.append(len(self._stack))
            case b"]":
                self._stack.append([])
            case b"l":
                self._stack.append(self._pop_to_mark())
            case b"t":
                self._stack.append(tuple(self._pop_to_mark()))
            case b"a":
                self._extend([self._pop()])
            case b"e":
                self._extend(self._pop_to_mark())
            case b"c":
                self._push_name(self._line(), self._line())
            case b"\x93":
                attribute, module = self._short_string(), self._short_string()
                self._push_name(module, attribute)
            case b"R":
                self._call()
            case b"b":
                self._build()
            case b"S":
                self._push_quoted()
            case b"V":
                self._push_escaped()
            case b"I" | b"L":
                self._stack.append(self._decimal())
            case b"p":
                self._remember(self._decimal())
            case b"q":
                self._remember(self._number("<B"))
            case b"r":
                self._remember(self._number("<I"))
            case b"\x94":
                self._remember(len(self._memo))
            case b"g":
                self._recall(self._decimal())
            case b"h":
                self._recall(self._number("<B"))
            case b"j":
                self._recall(self._number("<I"))
            case b"\x80":
                self._take(1)  # the protocol's number: the instructions speak for themselves
            case b"\x95":
                self._take(8)  # the length of a frame: a hint for buffering
            case _:
                raise self._error(
                    f"has the instruction '{shown(code)}' that no list of images needs"
                )

    def _error(self, problem: str) -> DataError:
        return DataError(
            f"{self._path} {problem} (byte {self._stream.tell()}), and nothing in it was run: "
            "get a complete file from a source that you trust."
        )

    def _take(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise self._error("ends in the middle of a pickle")
        return data

    def _number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _line(self) -> bytes:
        line = self._stream.readline(self._longest_line)
        if not line.endswith(b"\n"):
            raise self._error("has a line without an end")
        return line[:-1]

    def _decimal(self) -> int:
        line = self._line()
        if line in (b"00", b"01"):  # how protocols 0 and 1 write False and True
            return line == b"01"
        if not re.fullmatch(rb"-?[0-9]{1,18}L?", line):
            raise self._error(f"has '{shown(line)}' where a number belongs")
        return int(line.removesuffix(b"L"))

    def _pop(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self._error("takes more from its stack than it put there")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[object]:
        if not self._marks:
            raise self._error("takes more from its stack than it put there")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _push_span(self, length: int, codec: str, text: bool) -> None:
        offset = self._stream.tell()
        if not 0 <= length <= self._size - offset:
            raise self._error(f"promises {length} bytes where {self._size - offset} are left")
        self._stream.seek(length, io.SEEK_CUR)
        self._stack.append(Span(offset, length, codec, text))

    def _push_quoted(self) -> None:
        offset, line = self._stream.tell(), self._line()
        if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
            raise self._error("has a string without its quotes")
        self._stack.append(Span(offset + 1, len(line) - 2, _ESCAPED))

    def _push_escaped(self) -> None:
        offset, line = self._stream.tell(), self._line()
        self._stack.append(Span(offset, len(line), _UNICODE_ESCAPE, text=True))

    def _push_name(self, module: bytes, attribute: bytes) -> None:
        name = f"{shown(module)}.{shown(attribute)}".replace("numpy.core.", "numpy._core.")
        if name not in self._names:
            raise self._error(f"asks for {name}, which no list of images needs")
        self._stack.append(Name(name))

    def _short_string(self) -> bytes:
        node, position = self._pop(), self._stream.tell()
        if not isinstance(node, Span) or node.length > 100:
            raise self._error("asks for something without a name")
        try:
            return node.content(self._stream)
        except ValueError as error:
            raise self._error("asks for something without a name") from error
        finally:
            self._stream.seek(position)

    def _extend(self, items: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, list):
            raise self._error("appends to something that is not a list")
        target.extend(items)
        self._stack.append(target)

    def _call(self) -> None:
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise self._error("calls something without a name")
        self._stack.append(Call(name.text, arguments))

    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        if not isinstance(target, Call):
            raise self._error("gives a state to something that was not called")
        target.state = state
        self._stack.append(target)

    def _remember(self, index: int) -> None:
        self._memo[index] = self._pop()
        self._stack.append(self._memo[index])

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise self._error(f"recalls number {index} that it never remembered")
        self._stack.append(self._memo[index])


def shown(data: bytes) -> str:
    """Return bytes for a message: printable and short."""
    return data[:60].decode("ascii", "backslashreplace")
