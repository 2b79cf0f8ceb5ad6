"""RecordIO files as MXNet writes them, for tests of what reads them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bench.datasets.recordio import Record

MAGIC = struct.pack("<I", 0xCED7230A)


def part(flag: int, data: bytes) -> bytes:
    """Return one part of a record as the format prescribes it."""
    return MAGIC + struct.pack("<I", flag << 29 | len(data)) + data + bytes(-len(data) % 4)


def pack(record: Record) -> bytes:
    """Return the payload of a record: its header, its labels if there are several, its image."""
    if record.scalar:
        header = struct.pack("<IfQQ", 0, record.labels[0], record.id, record.id2)
    else:
        header = struct.pack("<IfQQ", len(record.labels), 0.0, record.id, record.id2)
        header += record.labels.astype("<f4").tobytes()
    return header + record.image


def write_records(
    path: Path, records: Iterable[tuple[int, bytes]], index: Path | None = None
) -> None:
    """Write a `.rec` of payloads by key, and the `.idx` beside it or elsewhere."""
    written, lines = b"", b""
    for key, payload in records:
        lines += b"%d\t%d\n" % (key, len(written))
        written += framed(payload)
    path.write_bytes(written)
    (index or path.with_suffix(".idx")).write_bytes(lines)


def framed(payload: bytes) -> bytes:
    """Return a payload as its parts, cut at each magic that stands at a multiple of 4."""
    words = np.frombuffer(payload, "<u4", len(payload) // 4)
    cuts = (4 * np.flatnonzero(words == 0xCED7230A)).tolist()
    if not cuts:
        return part(0, payload)
    ends = [*cuts, len(payload)]
    pieces = [
        payload[start:end] for start, end in zip([0, *(cut + 4 for cut in cuts)], ends, strict=True)
    ]
    flags = [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(part(flag, piece) for flag, piece in zip(flags, pieces, strict=True))
