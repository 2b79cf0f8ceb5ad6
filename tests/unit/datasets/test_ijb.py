from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bench.datasets import ijb
from bench.datasets.ijb import (
    OneToOne,
    Pooling,
    read_faces,
    read_landmarks,
    read_one_to_n,
    read_one_to_one,
    read_template_pairs,
    read_templates,
)
from bench.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FACES = "1.jpg 1 69544\n2.jpg 1 69544\n3.jpg 11065 7\n"
LANDMARKS = (
    "1.jpg 46.060 62.026 87.785 60.323 68.851 77.656 52.162 99.875 86.450 98.648 0.999\n"
    "2.jpg 29.468 27.597 55.101 24.941 41.263 43.561 35.392 56.457 55.675 54.138 1.0\n"
    "3.jpg -3.5 1 2 3 4 5 6 7 8 1e-05 8.25e-05\n"
)
PAIRS = "1 11065 1\n11065 1 0\n"
CSV = (
    "TEMPLATE_ID,SUBJECT_ID,FILENAME,FACE_X\n5,20,img/1.png,3\n5,20,frames/2.png,4\n2,10,a.png,1\n"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "list.txt"
    path.write_bytes(text.encode())
    return path


def meta(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        suffix = "csv" if "1N" in name else "txt"
        (folder / f"{name}.{suffix}").write_text(text)
    return folder


def test_faces(tmp_path: Path) -> None:
    faces = read_faces(written(tmp_path, FACES))
    assert faces.images.tolist() == [1, 2, 3]
    assert faces.templates.tolist() == [1, 1, 11065]
    assert faces.media.tolist() == [69544, 69544, 7]
    assert faces.images.dtype == faces.templates.dtype == faces.media.dtype == np.int32


def test_landmarks(tmp_path: Path) -> None:
    landmarks = read_landmarks(written(tmp_path, LANDMARKS))
    assert landmarks.images.tolist() == [1, 2, 3]
    assert landmarks.points.dtype == landmarks.scores.dtype == np.float32
    assert landmarks.points.shape == (3, 5, 2)
    np.testing.assert_allclose(landmarks.points[0, 1], [87.785, 60.323])
    np.testing.assert_allclose(landmarks.points[2, 0], [-3.5, 1])
    np.testing.assert_allclose(landmarks.scores, [0.999, 1, 8.25e-05], rtol=1e-6)


def test_template_pairs(tmp_path: Path) -> None:
    pairs = read_template_pairs(written(tmp_path, PAIRS))
    assert pairs.left.tolist() == [1, 11065]
    assert pairs.right.tolist() == [11065, 1]
    assert pairs.same.dtype == np.bool_
    assert pairs.same.tolist() == [True, False]


@pytest.mark.parametrize(
    ("read", "text"),
    [(read_faces, FACES), (read_landmarks, LANDMARKS), (read_template_pairs, PAIRS)],
)
def test_line_ends_do_not_matter(tmp_path: Path, read: Callable[[Path], Any], text: str) -> None:
    expected = read(written(tmp_path, text))
    for variant in (text.rstrip("\n"), text.replace("\n", "\r\n")):
        actual = read(written(tmp_path, variant))
        for name, values in vars(expected).items():
            np.testing.assert_array_equal(getattr(actual, name), values)


@pytest.mark.parametrize("block", [1, 7, 40, 100])
def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    random = np.random.default_rng(block)
    numbers = random.integers(0, 10**9, (200, 3))
    numbers[:, 2] %= 2
    text = "".join(f"{a} {b} {c}\n" for a, b, c in numbers.tolist())
    monkeypatch.setattr(ijb, "_BLOCK_BYTES", block)
    pairs = read_template_pairs(written(tmp_path, text))
    np.testing.assert_array_equal(np.stack([pairs.left, pairs.right, pairs.same], axis=1), numbers)
    with pytest.raises(DataError, match="line 150: '7 8' is not"):
        read_template_pairs(written(tmp_path, text.replace(text.split("\n")[149], "7 8")))


BAD_FACES = [
    "2 1 69544",
    "2.png 1 69544",
    "a/2.jpg 1 69544",
    ".jpg 1 69544",
    "2.jpg 1",
    "2.jpg 1 2 3",
    "2.jpg 1 2 ",
    " 2.jpg 1 2",
    "2.jpg  1 2",
    "2.jpg\t1\t2",
    "2.jpg 1 -2",
    "2.jpg +1 2",
    "2.jpg 1.0 2",
    "2.jpg 1e3 2",
    "2.jpg 1 1000000000",
    "2.jpg 1 99999999999999999999999",
    "2.jpg 1 NA",
    "2.jpg 1 True",
    '2.jpg "1" 2',
    "2.jpg 1 2\r3.jpg 1 2",
    "2.jpg 1 2\0",
    "2.jpg 1 \u0663",
    "2.jpg .jpg 2",
    "",
    "x" * 10_000,
]


@pytest.mark.parametrize("line", BAD_FACES)
def test_refuses_lines_of_faces(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, f"1.jpg 1 69544\n{line}\n3.jpg 11065 7\n")
    with pytest.raises(DataError) as caught:
        read_faces(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert "is not '1.jpg template media'" in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize(
    "line", ["1 2 2", "1 2 -1", "1 2", "1 2 1 1", "1.jpg 2 1", "1 2 true", "", "\ufeff1 2 1"]
)
def test_refuses_lines_of_pairs(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"line 1: .* is not 'template template 0\|1'"):
        read_template_pairs(written(tmp_path, f"{line}\n1 11065 1\n"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.999", "-0.999"),
        ("0.999", "nan"),
        ("0.999", "1e9"),
        ("0.999", ""),
        (" 0.999", ""),
        ("46.060", "inf"),
        ("46.060", "4_6"),
        ("46.060", "9999999999"),
    ],
)
def test_refuses_lines_of_landmarks(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(DataError, match=r"line 1: .* is not '1\.jpg x1 y1"):
        read_landmarks(written(tmp_path, LANDMARKS.replace(old, new, 1)))


@pytest.mark.parametrize("read", [read_faces, read_landmarks, read_template_pairs])
def test_refuses_empty_lists(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(DataError, match=r"list\.txt is empty"):
        read(written(tmp_path, ""))


def test_templates_are_listed_once(tmp_path: Path) -> None:
    templates = read_templates(written(tmp_path, CSV))
    assert templates.templates.tolist() == [2, 5]
    assert templates.subjects.tolist() == [10, 20]
    assert templates.templates.dtype == templates.subjects.dtype == np.int32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with a header"),
        (CSV.split("\n")[0], "does not begin with a header"),
        (CSV.split("\n", 1)[1], "does not begin with a header"),
        (CSV + "x,10,a.png\n", "line 5: not 'template,subject,...'"),
        (CSV + "7\n", "line 5: not"),
        (CSV + "\n", "line 5: not"),
        (CSV + "7,-1,a\n", "line 5: not"),
        (CSV + "7,1234567890,a\n", "line 5: not"),
        (CSV + "5,21,a.png,0\n", "template 5 belongs to the subjects 20 and 21"),
    ],
)
def test_refuses_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_templates(written(tmp_path, text))


def one_to_one(folder: Path, faces: str = FACES, pairs: str = PAIRS) -> OneToOne:
    texts = {
        "ijbc_face_tid_mid": faces,
        "ijbc_name_5pts_score": LANDMARKS,
        "ijbc_template_pair_label": pairs,
    }
    return read_one_to_one(meta(folder, **texts), "ijbc")


def test_one_to_one_fits_together(tmp_path: Path) -> None:
    protocol = one_to_one(tmp_path)
    np.testing.assert_array_equal(protocol.faces.images, protocol.landmarks.images)
    assert len(protocol.pairs.same) == 2


@pytest.mark.parametrize("faces", [FACES.replace("2.jpg", "4.jpg"), FACES + "4.jpg 2 2\n"])
def test_lists_of_other_faces_are_refused(tmp_path: Path, faces: str) -> None:
    with pytest.raises(DataError, match="do not name the same crops in the same order"):
        one_to_one(tmp_path, faces=faces)


@pytest.mark.parametrize("pair", ["2 1 0\n", "1 999999999 0\n"])
def test_pairs_of_unknown_templates_are_refused(tmp_path: Path, pair: str) -> None:
    with pytest.raises(DataError, match="1 templates in the pairs of ijbc have no face"):
        one_to_one(tmp_path, pairs=PAIRS + pair)


def test_one_to_n_keeps_the_galleries_apart(tmp_path: Path) -> None:
    second = CSV.replace(",20,", ",21,").replace(",10,", ",11,")
    texts = {"ijbb_1N_gallery_S1": CSV, "ijbb_1N_gallery_S2": second, "ijbb_1N_probe_mixed": CSV}
    protocol = read_one_to_n(meta(tmp_path, **texts), "ijbb")
    assert [gallery.subjects.tolist() for gallery in protocol.galleries] == [[10, 20], [11, 21]]
    assert protocol.probes.templates.tolist() == [2, 5]
    meta(tmp_path, ijbb_1N_gallery_S2=CSV)
    with pytest.raises(DataError, match="the galleries of ijbb share 2 subjects, such as 10"):
        read_one_to_n(tmp_path, "ijbb")


def test_pooling_is_spelled_as_in_the_scripts() -> None:
    assert str(Pooling()) == "N1D1F1"
    assert Pooling.parse("N0D1F0") == Pooling(norm=False, detector=True, flip=False)
    for text in ("N1D1F1", "N0D0F0", "N0D1F0"):
        assert str(Pooling.parse(text)) == text


@pytest.mark.parametrize("text", ["", "N1D1", "N1D1F2", "n1d1f1", "N1D1F1 ", "D1N1F1"])
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="write N, D and F with 0 or 1"):
        Pooling.parse(text)


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = written(tmp_path, "1 2 0\n" * 1_000_000)
    tracemalloc.start()
    try:
        assert not read_template_pairs(path).same.any()
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + (40 << 20)
    finally:
        tracemalloc.stop()
