"""LFW's `pairs.txt`: which image is compared with which, and in which fold.

Format: http://vis-www.cs.umass.edu/lfw/README.txt, "pairs.txt". A header `sets<TAB>n`, then for
every set n matched pairs `name<TAB>i<TAB>j` and n mismatched pairs `name<TAB>i<TAB>name<TAB>j`.

A parser that keys on the number of fields alone, and drops what it cannot place, shifts the
contiguous folds of everything behind; this one refuses the file and names the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from bench.datasets.images import reading
from bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MAX_BYTES = 2 << 20
"""Largest accepted list in bytes; LFW's own has 160 kB."""

_NUMBER = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)
# A name becomes a folder and a file: no separators, no leading dot, no drive letters.
_NAME = re.compile(r"(?!\.)[^/\\:\x00-\x1f]{1,200}")

Image = tuple[str, int]


@dataclass(frozen=True)
class Pairs:
    """Pairs of images in the order of the file.

    Attributes:
        left: First image of every pair, as (name of the person, number of the image from 1).
        right: Second image of every pair.
        same: Boolean array of shape (pairs,): both images show the same person.
        folds: Integer array of shape (pairs,): the fold of every pair, from 0.
    """

    left: list[Image]
    right: list[Image]
    same: NDArray[np.bool_]
    folds: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.left)


def file_name(name: str, number: int) -> str:
    """Return the path of an image below LFW's root, `name/name_0001.jpg`."""
    return f"{name}/{name}_{number:04d}.jpg"


def parse_pairs(path: Path) -> Pairs:
    """Read a list of pairs in LFW's format.

    Args:
        path: UTF-8 text file; fields are separated by tabs or spaces.

    Returns:
        The pairs with their folds.

    Raises:
        DataError: The file cannot be read, a line is not what its position in the fold asks for, a
            name could leave the data folder, or the number of pairs is not the header's.
    """
    with reading(path, max_bytes=MAX_BYTES) as stream:
        return _pairs(_lines(stream, path), path)


def _lines(stream: BinaryIO, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield where every line is, for messages, and its fields."""
    for number, line in enumerate(stream, start=1):
        where = f"{path}, line {number}"
        try:
            yield where, line.decode("utf-8").split()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not UTF-8 text ({error.reason}): check that the file is a list of pairs."
            ) from error


def _pairs(lines: Iterator[tuple[str, list[str]]], path: Path) -> Pairs:
    sets, per_class = _header(*next(lines, (f"{path}, line 1", [])))
    expected = 2 * sets * per_class
    promise = f"its header promises {sets} sets of {per_class} + {per_class}, {expected} in all"
    left: list[Image] = []
    right: list[Image] = []
    for where, fields in lines:
        if len(left) < expected:
            first, second = _pair(fields, len(left) % (2 * per_class) < per_class, where)
            left.append(first)
            right.append(second)
        elif fields:
            raise DataError(f"{where}: a pair too many, {promise}: get an unedited copy.")
    if len(left) < expected:
        raise DataError(f"{path} ends after {len(left)} pairs, but {promise}: get a complete copy.")
    position = np.arange(expected)
    return Pairs(left, right, position % (2 * per_class) < per_class, position // (2 * per_class))


def _header(where: str, fields: list[str]) -> tuple[int, int]:
    if len(fields) != 2 or not all(_NUMBER.fullmatch(field) for field in fields):
        raise DataError(
            f"{where}: expected a header of two positive numbers, sets and pairs per class, "
            f"found {_shown(fields)}: get an unedited copy of the list."
        )
    return int(fields[0]), int(fields[1])


def _pair(fields: list[str], matched: bool, where: str) -> tuple[Image, Image]:
    wanted = "name i j" if matched else "name i name j"
    kind = "matched" if matched else "mismatched"
    if len(fields) != len(wanted.split()):
        raise DataError(
            f"{where}: expected a {kind} pair '{wanted}' at this place of the fold, found "
            f"{_shown(fields)}: restore the line, folds are counted by position."
        )
    if matched:
        fields = [fields[0], fields[1], fields[0], fields[2]]
    first, second = _image(fields[0], fields[1], where), _image(fields[2], fields[3], where)
    if (first[0] == second[0]) != matched or first == second:
        raise DataError(
            f"{where}: a {kind} pair cannot compare {_shown(fields)}: restore the line."
        )
    return first, second


def _image(name: str, number: str, where: str) -> Image:
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{where}: {_shown([name])} cannot be the name of a folder: "
            "use names without separators or a leading dot."
        )
    if not _NUMBER.fullmatch(number):
        raise DataError(
            f"{where}: {_shown([number])} is not the number of an image: use 1, 2, 3 and so on."
        )
    return name, int(number)


def _shown(fields: list[str]) -> str:
    """Return the fields for a message, cut to a readable length."""
    text = " ".join(fields)
    return repr(text if len(text) <= 60 else text[:57] + "...")
