"""MXNet's RecordIO (`train.rec` and `train.idx`), in which face training sets are distributed.

Format (dmlc-core `src/recordio.cc`, apache/mxnet `python/mxnet/recordio.py`), little-endian:

    u32 magic | u32 flag << 29 | length | payload | zeros up to a multiple of 4

A payload that holds the magic at a multiple of 4 is written in parts (flags 1, 2, ..., 2, 3)
without those magics, and they are put back between the parts. `train.idx` is text, a line
`key<TAB>offset` for every record. The payload starts with the header `u32 flag, f32 label, u64 id,
u64 id2`; a flag above 0 is a number of float32 labels that follow and replace the one in the
header; the rest is the encoded image.
"""

from __future__ import annotations

import io
import re
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from bench.datasets.images import decode, reading
from bench.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAX_PAYLOAD = 64 << 20
"""Largest payload of one record, in bytes."""

_MAGIC_NUMBER = 0xCED7230A
_MAGIC = struct.pack("<I", _MAGIC_NUMBER)
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_HEADER = struct.Struct("<IfQQ")

_INDEX_LINE = re.compile(rb"([0-9]{1,18})\t([0-9]{1,18})\r?\n?")

_ROUNDING = (0, 1, -1, 2, -2)
"""float32 holds every integer up to 2**24; the largest public sets have 4e7 images."""


@dataclass(frozen=True)
class Record:
    """One record with its header read.

    Attributes:
        labels: Float32 array of shape (labels,), at least one; an identity is `labels[0]`.
        id: First number of the record.
        id2: Second number of the record.
        image: The encoded image; empty in records that describe others.
        scalar: The label stands in the header itself (flag 0) and not behind it.
    """

    labels: NDArray[np.float32]
    id: int
    id2: int
    image: bytes
    scalar: bool = True


def unpack(payload: bytes, *, where: str) -> Record:
    """Read the header of a payload.

    Args:
        payload: What `IndexedRecords.payload` returned.
        where: Names the record in errors.

    Raises:
        DataError: The payload is shorter than its header and labels.
    """
    if len(payload) < _HEADER.size:
        raise DataError(
            f"{where} has {len(payload)} bytes where a header takes {_HEADER.size}: "
            "check that the file holds labelled images."
        )
    count, label, first, second = _HEADER.unpack_from(payload)
    start = _HEADER.size + 4 * count
    if start > len(payload):
        raise DataError(
            f"{where} promises {count} labels, more than its {len(payload)} bytes hold: "
            "get a complete copy of the file."
        )
    if count == 0:
        return Record(np.array([label], np.float32), first, second, payload[start:])
    labels = np.frombuffer(payload, "<f4", count, _HEADER.size).astype(np.float32)
    return Record(labels, first, second, payload[start:], scalar=False)


class IndexedRecords:
    """Records by key, for which the index file is read whole and the records when asked for.

    Args:
        path: The `.rec` file.
        index: The `.idx` file; by default the one beside `path`.

    Attributes:
        keys: Int64 array of shape (records,): the keys in ascending order.

    Raises:
        DataError: A file cannot be read, or a line of the index does not point into the records.
    """

    def __init__(self, path: Path, index: Path | None = None) -> None:
        self._path = path
        with reading(path) as stream:
            size = _size(stream)
        self.keys, self._offsets = _index(index or path.with_suffix(".idx"), size)

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: int) -> bool:
        place = int(np.searchsorted(self.keys, key))
        return place < len(self.keys) and int(self.keys[place]) == key

    def payload(self, key: int) -> bytes:
        """Return the payload of one record.

        Raises:
            DataError: There is no such key, or what is at its offset is not a record.
        """
        if key not in self:
            raise DataError(f"{self._path} has no record {key} in its index: rebuild the index.")
        offset = int(self._offsets[np.searchsorted(self.keys, key)])
        with reading(self._path) as stream:
            size = _size(stream)
            stream.seek(offset)
            return _read(stream, size, self._path)

    def record(self, key: int) -> Record:
        """Return one record with its header read.

        Raises:
            DataError: As for `payload` and `unpack`.
        """
        return unpack(self.payload(key), where=self._where(key))

    def image(self, key: int) -> NDArray[np.uint8]:
        """Return one image as an RGB array of shape (height, width, 3), 0 to 255.

        Raises:
            DataError: The record cannot be read or holds no usable image.
        """
        return decode(self.record(key).image, where=self._where(key))

    def identity(self, key: int) -> int:
        """Return whom an image shows: its first label, a whole number.

        Raises:
            DataError: The record cannot be read or its label is not a whole number.
        """
        return _whole(self.record(key).labels[0], self._where(key))

    def image_keys(self) -> NDArray[np.int64]:
        """Return the keys of the images, shape (images,), ascending.

        In insightface's training sets record 0 has more than one label; the first is the key of the
        first record that describes an identity, and the images are those from 1 up to it
        (`recognition/arcface_torch/dataset.py`, `MXFaceDataset`). Without such a record 0 every
        record is an image.

        Raises:
            DataError: The images do not end where record 0 says.
        """
        if 0 not in self or self.record(0).scalar:
            return self.keys
        first = self._first_identity(_whole(self.record(0).labels[0], self._where(0)))
        images = self.keys[(self.keys > 0) & (self.keys < first)]
        if len(images) != first - 1:
            raise DataError(
                f"{self._where(0)} promises the images 1 to {first - 1}, of which the index has "
                f"{len(images)}: get a complete copy of both files."
            )
        return images

    def _first_identity(self, label: int) -> int:
        """Return the key behind the last image, which the label gives up to rounding."""
        for key in (label + step for step in _ROUNDING):
            if self._has_image(key - 1) and not self._has_image(key):
                return key
        raise DataError(
            f"{self._where(0)} promises that the images end before record {label}, but they do "
            "not: get a complete copy of both files."
        )

    def _has_image(self, key: int) -> bool:
        return key in self and len(self.record(key).image) > 0

    def _where(self, key: int) -> str:
        return f"{self._path}, record {key}"


def _size(stream: BinaryIO) -> int:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return size


def _read(stream: BinaryIO, size: int, path: Path) -> bytes:
    """Return the payload of the record at the position of the stream, its parts joined."""
    start = stream.tell()
    expected = (_WHOLE, _FIRST)
    parts: list[bytes] = []
    total = 0
    while True:
        flag, length = _part(stream, size, path, expected)
        total += length
        if total > MAX_PAYLOAD:
            raise DataError(
                f"{path}, byte {start}: a record of more than {MAX_PAYLOAD:,} bytes: "
                "check that the file holds images."
            )
        parts.append(stream.read(length))
        stream.seek(-length % 4, io.SEEK_CUR)
        if flag in (_WHOLE, _LAST):
            return _MAGIC.join(parts)
        expected = (_MIDDLE, _LAST)


def _part(stream: BinaryIO, size: int, path: Path, expected: tuple[int, int]) -> tuple[int, int]:
    """Return flag and length of the part at the position of the stream, which is left behind it."""
    where = f"{path}, byte {stream.tell()}"
    head = stream.read(8)
    if len(head) < 8:
        raise DataError(f"{where}: the file ends within a record: get a complete copy of it.")
    if not head.startswith(_MAGIC):
        raise DataError(
            f"{where}: no record starts here: check that the file is RecordIO, complete, and that "
            "its index belongs to it."
        )
    flag, length = divmod(int.from_bytes(head[4:], "little"), 1 << _LENGTH_BITS)
    if flag not in expected:
        raise DataError(
            f"{where}: part {flag} of a record where {expected[0]} or {expected[1]} belongs: "
            "get a complete copy of the file and its index."
        )
    left = size - stream.tell()
    if length > left:
        raise DataError(
            f"{where}: a record of {length:,} bytes where {left:,} are left: "
            "get a complete copy of the file."
        )
    return flag, length


def _index(path: Path, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return keys in ascending order and their offsets, both of shape (records,)."""
    keys, offsets = array("q"), array("q")
    with reading(path) as stream:
        for number, line in enumerate(stream, start=1):
            match = _INDEX_LINE.fullmatch(line)
            if match is None or int(match[2]) % 4 or int(match[2]) >= size:
                raise DataError(
                    f"{path}, line {number}: not 'key<TAB>offset' with an offset, a multiple of 4, "
                    f"into the {size:,} bytes of the records: rebuild the index."
                )
            keys.append(int(match[1]))
            offsets.append(int(match[2]))
    if not keys:
        raise DataError(f"{path} is empty: get a complete copy of it, or rebuild the index.")
    return _sorted(np.frombuffer(keys, np.int64), np.frombuffer(offsets, np.int64), path)


def _sorted(
    keys: NDArray[np.int64], offsets: NDArray[np.int64], path: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if (keys[1:] > keys[:-1]).all():  # as they are written
        return keys, offsets
    order = np.argsort(keys)
    keys, offsets = keys[order], offsets[order]
    if (keys[1:] == keys[:-1]).any():
        raise DataError(f"{path} has the same key twice: rebuild the index.")
    return keys, offsets


def _whole(label: np.float32, where: str) -> int:
    if not (0 <= label < 1 << 62 and label == np.floor(label)):
        raise DataError(
            f"{where} has the label {label} where a whole number belongs: "
            "check that the file holds identities."
        )
    return int(label)
