"""IJB-B and IJB-C as insightface distributes them: the lists in `meta/`, and how faces are pooled.

Lists of the 1:1 protocol, separated by single spaces, without a header (deepinsight/insightface,
`recognition/_evaluation_/ijb/ijb_11.py`):

    ijbc_face_tid_mid.txt          1.jpg template media
    ijbc_name_5pts_score.txt       1.jpg x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score
    ijbc_template_pair_label.txt   template template 0|1

Lists of the 1:N protocol are CSV with a header; a row per image, and the first two columns are the
template and the subject (`ijb_1n.py`): `ijbc_1N_gallery_G1.csv`, `ijbc_1N_gallery_G2.csv`,
`ijbc_1N_probe_mixed.csv`, and S1, S2 for IJB-B.

The scripts take the lines of the first two lists to be in the same order and never look at the
names; here that is checked.
"""

from __future__ import annotations

import csv
import io
import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from bench.datasets.images import reading
from bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

Name = Literal["ijbb", "ijbc"]

GALLERIES: dict[Name, tuple[str, str]] = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}
"""The two galleries of each set's 1:N protocol. Their subjects are disjoint."""

_BLOCK_BYTES = 4 << 20
_MAX_LINE_BYTES = 4096

_ID_LIMIT = 10**9
_ID = rb"[0-9]{1,9}"
_SIZE = rb"[0-9]{1,9}(\.[0-9]{0,20})?([eE]-[0-9]{1,2})?"

_CSV_ROW = re.compile(rb"([0-9]{1,9}),([0-9]{1,9})(,[^\n]*)?\r?\n?")

_NAMES = re.compile(rb"^([0-9]+)\.jpg ", re.MULTILINE)


@dataclass(frozen=True)
class _Layout:
    """What the lines of a list are.

    Attributes:
        shown: A line, for messages.
        line: A line without its end, exactly.
        columns: Number of fields.
        named: The first field is the name of a crop.
        alphabet: Bytes that occur, without the names' suffix.
        dtype: Type in which the fast parser reads the numbers.
        last: Smallest and largest value of the last field.
    """

    shown: str
    line: re.Pattern[bytes]
    columns: int
    named: bool
    alphabet: bytes
    dtype: type[np.int64 | np.float64]
    last: tuple[int, int]


_FACES = _Layout(
    shown="1.jpg template media",
    line=re.compile(_ID + rb"\.jpg " + _ID + b" " + _ID),
    columns=3,
    named=True,
    alphabet=b"0123456789 \r\n",
    dtype=np.int64,
    last=(0, _ID_LIMIT),
)
_LANDMARKS = _Layout(
    shown="1.jpg x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score",
    line=re.compile(_ID + rb"\.jpg( -?" + _SIZE + rb"){10} " + _SIZE),
    columns=12,
    named=True,
    alphabet=b"0123456789.-eE \r\n",
    dtype=np.float64,
    last=(0, _ID_LIMIT),
)
_PAIRS = _Layout(
    shown="template template 0|1",
    line=re.compile(_ID + b" " + _ID + b" [01]"),
    columns=3,
    named=False,
    alphabet=b"0123456789 \r\n",
    dtype=np.int64,
    last=(0, 1),
)


@dataclass(frozen=True)
class Pooling:
    """How the features of a template's images become one feature; part of every result.

    One name means opposite things in public scripts: `use_norm_score=True` keeps the norm in
    insightface's `ijb_11.py`, as here, and removes it in Keras_insightface's `IJB_evals.py`. The
    defaults are insightface's; TFace's script has all three off.

    Attributes:
        norm: Features keep their norm (N1) or are scaled to norm 1 before pooling (N0).
        detector: Features are multiplied by the detector's score (D1).
        flip: The feature of the mirror image is added (F1).
    """

    norm: bool = True
    detector: bool = True
    flip: bool = True

    def __str__(self) -> str:
        return f"N{self.norm:d}D{self.detector:d}F{self.flip:d}"

    @classmethod
    def parse(cls, text: str) -> Pooling:
        """Return what `str` wrote, such as "N1D1F1".

        Raises:
            DataError: The text is anything else.
        """
        match = re.fullmatch(r"N([01])D([01])F([01])", text)
        if match is None:
            raise DataError(
                f"The pooling {text!r} is unknown: write N, D and F with 0 or 1, N1D1F1."
            )
        return cls(*(flag == "1" for flag in match.groups()))


@dataclass(frozen=True)
class Faces:
    """Which crop belongs to which template and medium; all arrays int32 of shape (faces,).

    Attributes:
        images: Number n of the crop, the file `loose_crop/n.jpg`.
        templates: Template that the crop is part of.
        media: Photo or video that the crop is from; features are averaged within.
    """

    images: NDArray[np.int32]
    templates: NDArray[np.int32]
    media: NDArray[np.int32]


@dataclass(frozen=True)
class Landmarks:
    """Landmarks by which the crops are aligned.

    Attributes:
        images: Int32 array of shape (faces,): number n of the crop, the file `loose_crop/n.jpg`.
        points: Float32 array of shape (faces, 5, 2): x and y in pixels of the crop, in the order of
            the ArcFace template.
        scores: Float32 array of shape (faces,): the detector's confidence, from 0.
    """

    images: NDArray[np.int32]
    points: NDArray[np.float32]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class TemplatePairs:
    """Which templates are compared; all arrays of shape (pairs,).

    Attributes:
        left: First template, int32.
        right: Second template, int32.
        same: Whether both show the same person.
    """

    left: NDArray[np.int32]
    right: NDArray[np.int32]
    same: NDArray[np.bool_]


@dataclass(frozen=True)
class Templates:
    """Templates of a gallery or of the probes, in ascending order of their number.

    Attributes:
        templates: Int32 array of shape (templates,): the numbers.
        subjects: Int32 array of shape (templates,): whom each shows.
    """

    templates: NDArray[np.int32]
    subjects: NDArray[np.int32]


@dataclass(frozen=True)
class OneToOne:
    """The 1:1 protocol: row i of `faces` and of `landmarks` are the same crop."""

    faces: Faces
    landmarks: Landmarks
    pairs: TemplatePairs


@dataclass(frozen=True)
class OneToN:
    """The 1:N protocol: the probes are searched in each gallery separately."""

    galleries: tuple[Templates, Templates]
    probes: Templates


def read_one_to_one(meta: Path, name: Name) -> OneToOne:
    """Read the three lists of the 1:1 protocol and check that they fit together.

    Args:
        meta: Folder of the lists.
        name: Of the set; the names of the files begin with it.

    Raises:
        DataError: A list cannot be read, crops are not the same in both lists of them, or a pair
            names a template without a face.
    """
    faces = read_faces(meta / f"{name}_face_tid_mid.txt")
    landmarks = read_landmarks(meta / f"{name}_name_5pts_score.txt")
    pairs = read_template_pairs(meta / f"{name}_template_pair_label.txt")
    if not np.array_equal(faces.images, landmarks.images):
        raise DataError(
            f"{meta}: the two lists of the faces of {name} do not name the same crops in the same "
            "order: get both from one distribution."
        )
    for side in (pairs.left, pairs.right):
        unknown = np.setdiff1d(side, faces.templates)
        if len(unknown) > 0:
            raise DataError(
                f"{meta}: {len(unknown)} templates in the pairs of {name} have no face, such as "
                f"{unknown[0]}: get both lists from one distribution."
            )
    return OneToOne(faces, landmarks, pairs)


def read_one_to_n(meta: Path, name: Name) -> OneToN:
    """Read the lists of the 1:N protocol with mixed probes.

    Args:
        meta: Folder of the lists.
        name: Of the set; the names of the files begin with it.

    Raises:
        DataError: A list cannot be read, or the galleries share a subject.
    """
    first, second = (
        read_templates(meta / f"{name}_1N_gallery_{gallery}.csv") for gallery in GALLERIES[name]
    )
    shared = np.intersect1d(first.subjects, second.subjects)
    if len(shared) > 0:
        raise DataError(
            f"{meta}: the galleries of {name} share {len(shared)} subjects, such as {shared[0]}: "
            "get the original lists."
        )
    return OneToN((first, second), read_templates(meta / f"{name}_1N_probe_mixed.csv"))


def read_faces(path: Path) -> Faces:
    """Read the list of crops with their templates and media, `ijbX_face_tid_mid.txt`.

    Raises:
        DataError: The list cannot be read; names the line.
    """
    rows = np.empty((_count_lines(path), 3), np.int32)
    for place, table in _tables(path, _FACES):
        rows[place] = table
    return Faces(rows[:, 0], rows[:, 1], rows[:, 2])


def read_landmarks(path: Path) -> Landmarks:
    """Read the list of crops with their landmarks, `ijbX_name_5pts_score.txt`.

    Raises:
        DataError: The list cannot be read; names the line.
    """
    lines = _count_lines(path)
    images, numbers = np.empty(lines, np.int32), np.empty((lines, 11), np.float32)
    for place, table in _tables(path, _LANDMARKS):
        images[place] = table[:, 0]
        numbers[place] = table[:, 1:]
    return Landmarks(images, numbers[:, :10].reshape(-1, 5, 2), numbers[:, 10])


def read_template_pairs(path: Path) -> TemplatePairs:
    """Read the list of pairs of templates, `ijbX_template_pair_label.txt`.

    IJB-C's 15,658,489 lines take 9 bytes each in memory, and a few megabytes for parsing.

    Raises:
        DataError: The list cannot be read; names the line.
    """
    lines = _count_lines(path)
    left, right, same = np.empty(lines, np.int32), np.empty(lines, np.int32), np.empty(lines, bool)
    for place, table in _tables(path, _PAIRS):
        left[place], right[place], same[place] = table.T
    return TemplatePairs(left, right, same)


def read_templates(path: Path) -> Templates:
    """Read a CSV of the 1:N protocol, of which a template fills as many rows as it has images.

    Raises:
        DataError: The list cannot be read or lacks its header (names the line), or a template
            belongs to two subjects.
    """
    both = np.unique(np.frombuffer(_packed_rows(path), np.int64))
    templates, subjects = np.divmod(both, _ID_LIMIT)
    torn = np.flatnonzero(templates[1:] == templates[:-1])
    if len(torn) > 0:
        raise DataError(
            f"{path}: template {templates[torn[0]]} belongs to the subjects {subjects[torn[0]]} "
            f"and {subjects[torn[0] + 1]}: get an unedited copy of the list."
        )
    return Templates(templates.astype(np.int32), subjects.astype(np.int32))


def _packed_rows(path: Path) -> array[int]:
    """Return template * _ID_LIMIT + subject where it differs from the row before."""
    packed = array("q")
    with reading(path) as stream:
        header = stream.readline(_MAX_LINE_BYTES)
        for number, line in enumerate(stream, start=2):
            match = _CSV_ROW.fullmatch(line)
            if match is None:
                raise DataError(
                    f"{path}, line {number}: not 'template,subject,...': "
                    "get an unedited copy of the list."
                )
            value = int(match[1]) * _ID_LIMIT + int(match[2])
            if not packed or packed[-1] != value:
                packed.append(value)
    if not packed or _CSV_ROW.fullmatch(header):
        raise DataError(
            f"{path} does not begin with a header and go on with rows 'template,subject,...': "
            "get an unedited copy of the list."
        )
    return packed


def _count_lines(path: Path) -> int:
    lines, ended = 0, True
    with reading(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            lines += block.count(b"\n")
            ended = block.endswith(b"\n")
    if lines == 0 and ended:
        raise DataError(f"{path} is empty: get a complete copy of the list.")
    return lines + (not ended)


def _tables(path: Path, layout: _Layout) -> Iterator[tuple[slice, NDArray[np.number]]]:
    """Yield which rows of a list follow, and their numbers, shape (rows, columns)."""
    row = 0
    with reading(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            block += stream.readline(_MAX_LINE_BYTES)
            table = _table(block, layout)
            if table is None:
                raise _blame(block, row, layout, path)
            yield slice(row, row + len(table)), table
            row += len(table)


def _table(block: bytes, layout: _Layout) -> NDArray[np.number] | None:
    """Return the numbers of some lines, or None if one of them is not as it should be."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if layout.named:
        block, named = _NAMES.subn(rb"\1 ", block)
        if named != lines:
            return None
    # The parser knows more ways to write a number than the format.
    if block.translate(None, layout.alphabet):
        return None
    try:
        table = pd.read_csv(
            io.BytesIO(block),
            sep=" ",
            header=None,
            dtype=layout.dtype,
            quoting=csv.QUOTE_NONE,
            na_filter=False,
            skip_blank_lines=False,
        ).to_numpy()
    except (ValueError, OverflowError):
        return None
    if table.shape != (lines, layout.columns) or (np.abs(table) >= _ID_LIMIT).any():
        return None
    smallest, largest = layout.last
    inside = (table[:, -1] >= smallest) & (table[:, -1] <= largest)
    return table if inside.all() else None


def _blame(block: bytes, row: int, layout: _Layout, path: Path) -> DataError:
    """Return the error that names the first line of a block that is not as it should be."""
    lines = block.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=row + 1):
        if not layout.line.fullmatch(line.removesuffix(b"\r")):
            shown = line[:60].decode("ascii", "backslashreplace")
            where = f"{path}, line {number}: {shown!r}"
            break
    else:
        where = f"{path}, between line {row + 1} and {row + len(lines)}: something"
    return DataError(f"{where} is not '{layout.shown}': get an unedited copy of the list.")
