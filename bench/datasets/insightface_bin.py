"""insightface's pair sets (`lfw.bin`, `cfp_fp.bin`, ...), read without executing anything.

A file is `pickle.dump((bins, issame_list))`: 2P encoded images, pair p being images 2p and 2p + 1,
and P booleans (deepinsight/insightface, `recognition/arcface_torch/eval/verification.py`,
`load_bin`).

The pickle is read as data (`bench.datasets.pickle_machine`): of names it may hold
`_codecs.encode`, with which old protocols carry bytes, and numpy's array constructors. What was
noted is recognised as images and flags; nothing is imported or called.

`convert` writes the same pairs as a tar of images and a CSV, after which no pickle is needed.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from bench.assets import file_sha256
from bench.datasets.images import decode, reading, writing
from bench.datasets.pickle_machine import WIDTH, Call, Machine, Span, shown
from bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FOLDS = 10

PAIRS = {"lfw": 6000, "cfp_fp": 7000, "agedb_30": 6000, "calfw": 6000, "cplfw": 6000}
"""Number of pairs of the five sets that the field reports, by the stem of the file."""

MAX_IMAGE_BYTES = 1 << 20
"""Largest encoded image of a pair, in bytes."""

MAX_IMAGE_PIXELS = 1 << 22
"""Largest decoded image of a pair, in pixels."""

_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png"}

_ENCODE = "_codecs.encode"
_RECONSTRUCT = "numpy._core.multiarray._reconstruct"
_SCALAR = "numpy._core.multiarray.scalar"
_FROM_BUFFER = "numpy._core.numeric._frombuffer"
_DTYPE = "numpy.dtype"
_NAMES = frozenset({_ENCODE, _RECONSTRUCT, _SCALAR, _FROM_BUFFER, _DTYPE, "numpy.ndarray"})


@dataclass(frozen=True)
class PairImages:
    """Encoded images in pairs, decoded one at a time when asked for.

    Attributes:
        path: File that holds the images.
        same: Boolean array of shape (pairs,): both images show the same person.
        folds: Integer array of shape (pairs,): ten contiguous blocks, numbered from 0.
        spans: Where the 2P images lie in the file; pair p has images 2p and 2p + 1.
    """

    path: Path
    same: NDArray[np.bool_]
    folds: NDArray[np.intp]
    spans: Sequence[Span]

    def __len__(self) -> int:
        return len(self.same)

    def encoded(self, index: int) -> bytes:
        """Return image `index`, 0 to 2P - 1, as its JPEG or PNG bytes.

        Raises:
            DataError: The file cannot be read or does not hold an image there any more.
        """
        with reading(self.path) as stream:
            return _image_bytes(stream, self.spans[index], f"{self.path}, image {index}")

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, 0 to 2P - 1, as an RGB array of shape (height, width, 3), 0 to 255.

        Raises:
            DataError: The image is damaged or too large.
        """
        where = f"{self.path}, image {index}"
        return decode(self.encoded(index), where=where, max_pixels=MAX_IMAGE_PIXELS)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Yield the decoded pairs in order."""
        for index in range(0, len(self.spans), 2):
            yield self.image(index), self.image(index + 1)


def read_bin(path: Path, *, allow_numpy: bool = False) -> PairImages:
    """Index a pair set in insightface's format without executing anything.

    Args:
        path: The `.bin` file. One that bears the name of a set in `PAIRS` must have its size.
        allow_numpy: Accept flags and images that were pickled as numpy objects; they are read as
            data like everything else.

    Returns:
        The pairs; their images stay in the file.

    Raises:
        DataError: The file is not such a pickle, asks for anything but lists of images and flags,
            is truncated, or holds embeddings (insightface's `dumpR` writes those under the same
            suffix).
    """
    with reading(path) as stream:
        root = Machine(stream, path, _NAMES, MAX_IMAGE_BYTES).run()
        spans, same = _Reader(stream, path, allow_numpy).pairs(root)
    expected = PAIRS.get(path.stem, len(same))
    if len(same) != expected:
        raise DataError(
            f"{path} has {len(same)} pairs where the set of this name has {expected}: "
            "get the complete file, or rename it if it is another set."
        )
    return PairImages(path, same, contiguous_folds(len(same)), spans)


def contiguous_folds(pairs: int) -> NDArray[np.intp]:
    """Return ten contiguous folds of equal size; the first ones take what is left over.

    This is scikit-learn's `KFold(10, shuffle=False)`, which insightface runs.
    """
    sizes = [(pairs + FOLDS - 1 - fold) // FOLDS for fold in range(FOLDS)]
    return np.repeat(np.arange(FOLDS), sizes)


class _Reader:
    """Recognises images and flags in what the machine noted; never looks deeper than it has to."""

    def __init__(self, stream: BinaryIO, path: Path, allow_numpy: bool) -> None:
        self._stream = stream
        self._path = path
        self._allow_numpy = allow_numpy

    def pairs(self, root: object) -> tuple[list[Span], NDArray[np.bool_]]:
        """Return where the images are, and the flags."""
        if not isinstance(root, tuple) or len(root) != 2:
            raise self._error("does not hold a list of images and a list of flags")
        images, flags = root
        if not isinstance(images, list):
            raise self._error(
                "has no list of encoded images, perhaps embeddings as insightface's dumpR writes"
            )
        spans = [self._image(node, index) for index, node in enumerate(images)]
        same = self._flags(flags)
        if len(spans) != 2 * len(same) or not spans:
            raise self._error(f"has {len(spans)} images for {len(same)} pairs, not two for each")
        return spans, same

    def _error(self, problem: str) -> DataError:
        return DataError(f"{self._path} {problem}: check that it is a complete set of image pairs.")

    def _image(self, node: object, index: int) -> Span:
        span = self._bytes(node)
        if span is None and (array := self._array(node)) is not None:
            dtype, span = array
            if dtype != b"u1":
                raise self._error(f"has numbers of type {shown(dtype)} where image {index} belongs")
        if span is None:
            raise self._error(f"has something else than bytes where image {index} belongs")
        _image_bytes(self._stream, span, f"{self._path}, image {index}")
        return span

    def _flags(self, node: object) -> NDArray[np.bool_]:
        if isinstance(node, list):
            return np.array(
                [self._flag(item, index) for index, item in enumerate(node)], dtype=bool
            )
        return np.frombuffer(self._flag_bytes(node, "its flags"), dtype=bool)

    def _flag(self, node: object, index: int) -> bool:
        if isinstance(node, bool):
            return node
        data = self._flag_bytes(node, f"flag {index}")
        if len(data) != 1:
            raise self._error(f"has {len(data)} values where flag {index} belongs")
        return data == b"\x01"

    def _flag_bytes(self, node: object, what: str) -> bytes:
        """Return numpy booleans as bytes of 0 and 1."""
        dtype, span = self._array(node) or (b"", None)
        if span is None or dtype != b"b1":
            raise self._error(f"has something else than True or False for {what}")
        data = self._content(span)
        if data.translate(None, b"\x00\x01"):
            raise self._error(f"has bytes other than 0 and 1 for {what}")
        return data

    def _bytes(self, node: object) -> Span | None:
        """Return the span of a byte string: as it is, or as latin1 text that is to be encoded."""
        if isinstance(node, Span) and not node.text:
            return node
        if isinstance(node, Call) and node.name == _ENCODE and len(node.arguments) == 2:
            text, encoding = node.arguments
            if isinstance(text, Span) and text.text and self._string(encoding) == b"latin1":
                return text._replace(text=False)
        return None

    def _array(self, node: object) -> tuple[bytes, Span] | None:
        """Return the type code and the span of a numpy array or scalar."""
        match node:
            case Call(name=name, state=(_, _, kind, _, data)) if name == _RECONSTRUCT:
                pass
            case Call(name=name, arguments=(data, kind, _, _)) if name == _FROM_BUFFER:
                pass
            case Call(name=name, arguments=(kind, data)) if name == _SCALAR:
                pass
            case _:
                return None
        if not self._allow_numpy:
            raise DataError(
                f"{self._path} holds numpy objects: allow_numpy=True reads them, as data."
            )
        span = self._bytes(data)
        return None if span is None else (self._type(kind), span)

    def _type(self, node: object) -> bytes:
        match node:
            case Call(name=name, arguments=(code, *_)) if name == _DTYPE:
                return self._string(code)
            case _:
                return b""

    def _string(self, node: object) -> bytes:
        """Return a short string, or nothing if that is not what the node is."""
        return self._content(node) if isinstance(node, Span) and node.length < 20 else b""

    def _content(self, span: Span) -> bytes:
        try:
            return span.content(self._stream)
        except ValueError as error:
            raise self._error(f"has a damaged string at byte {span.offset} ({error})") from error


def _image_bytes(stream: BinaryIO, span: Span, where: str) -> bytes:
    """Return an encoded image after checking that it is one, as far as its first bytes tell."""
    try:
        small = span.length <= WIDTH[span.codec] * MAX_IMAGE_BYTES
        data = span.content(stream) if small else b""
    except ValueError as error:
        raise DataError(f"{where} is damaged ({error}): get a complete file.") from error
    if not data.startswith(tuple(_MAGIC)) or len(data) > MAX_IMAGE_BYTES:
        raise DataError(
            f"{where} is not a JPEG or PNG image of at most {MAX_IMAGE_BYTES:,} bytes: "
            "check that the file is a complete set of image pairs."
        )
    return data


_TAR = "images.tar"
_CSV = "pairs.csv"
_SUMS = "SHA256SUMS"
_FIELDS = ["left", "right", "same", "fold"]


def convert(path: Path, folder: Path, *, allow_numpy: bool = False) -> PairImages:
    """Write a pair set in a neutral format: `images.tar`, `pairs.csv` and `SHA256SUMS`.

    The images are copied as they are. `pairs.csv` has the columns left and right (names in the
    tar), same (0 or 1) and fold (from 0). The same set gives the same bytes. Every file appears
    complete or not at all, and `SHA256SUMS` last, so that an interrupted conversion is noticed.

    Args:
        path: The `.bin` file.
        folder: Where to write; created if needed, files of an earlier conversion are replaced.
        allow_numpy: As in `read_bin`.

    Returns:
        The pairs as read back from `folder`.

    Raises:
        DataError: The file is not a usable pair set, or the folder cannot be written.
    """
    pairs = read_bin(path, allow_numpy=allow_numpy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be created ({error.strerror}): choose another folder."
        ) from error
    with writing(folder / _TAR) as stream:
        names = _write_tar(pairs, stream)
    with writing(folder / _CSV) as stream:
        stream.write(_csv(pairs, names).encode())
    sums = [f"{file_sha256(folder / name)}  {name}\n" for name in (_TAR, _CSV)]
    with writing(folder / _SUMS) as stream:
        stream.write("".join(sums).encode())
    return open_converted(folder)


def _write_tar(pairs: PairImages, stream: BinaryIO) -> list[str]:
    names = []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index in range(len(pairs.spans)):
            data = pairs.encoded(index)
            suffix = next(suffix for magic, suffix in _MAGIC.items() if data.startswith(magic))
            member = tarfile.TarInfo(f"{index:06d}.{suffix}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            names.append(member.name)
    return names


def _csv(pairs: PairImages, names: list[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_FIELDS)
    columns = (names[0::2], names[1::2], pairs.same.astype(int), pairs.folds)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def open_converted(folder: Path) -> PairImages:
    """Open what `convert` wrote.

    Raises:
        DataError: A file is missing, is not the one that `SHA256SUMS` records, or is malformed.
    """
    _verify(folder)
    spans = _tar_spans(folder / _TAR)
    with reading(folder / _CSV) as stream:
        text = stream.read().decode("ascii", "replace")
    header, *rows = [line.split(",") for line in text.split("\n")]
    if (
        header != _FIELDS
        or not rows
        or rows.pop() != [""]
        or not all(_is_row(row, spans) for row in rows)
    ):
        raise DataError(
            f"{folder / _CSV} has a line other than '{','.join(_FIELDS)}' with images of {_TAR}: "
            "convert the set again."
        )
    return PairImages(
        folder / _TAR,
        np.array([row[2] == "1" for row in rows], dtype=bool),
        np.array([row[3] for row in rows], dtype=np.intp),
        [spans[name] for row in rows for name in row[:2]],
    )


def _is_row(fields: list[str], spans: dict[str, Span]) -> bool:
    return (
        len(fields) == len(_FIELDS)
        and fields[0] in spans
        and fields[1] in spans
        and fields[2] in ("0", "1")
        and re.fullmatch(r"[0-9]{1,6}", fields[3], re.ASCII) is not None
    )


def _verify(folder: Path) -> None:
    with reading(folder / _SUMS, max_bytes=1000) as stream:
        recorded = stream.read()
    for name in (_TAR, _CSV):
        with reading(folder / name):
            actual = file_sha256(folder / name)
        if f"{actual}  {name}\n".encode() not in recorded:
            raise DataError(
                f"{folder / name} is not the file that {_SUMS} records: convert the set again."
            )


def _tar_spans(path: Path) -> dict[str, Span]:
    """Return where every image lies in a tar of regular files with short names."""
    spans: dict[str, Span] = {}
    with reading(path) as stream:
        while (header := stream.read(tarfile.BLOCKSIZE)).strip(b"\0"):
            try:
                member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
            except (tarfile.HeaderError, UnicodeDecodeError) as error:
                raise DataError(f"{path} is not a tar ({error}): convert the set again.") from error
            if not member.isreg() or not 0 <= member.size <= MAX_IMAGE_BYTES:
                raise DataError(f"{path} has something else than images: convert the set again.")
            spans[member.name] = Span(stream.tell(), member.size)
            stream.seek(-(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, io.SEEK_CUR)
    return spans
