"""LFW: a tar or a folder as distributed, and official pairs; the real one where it is at hand."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bench.datasets.base import SplitSizes
from bench.datasets.images import decode
from bench.datasets.lfw import LFW
from bench.errors import DataError
from bench.registry import DATASETS

FILES = {
    "Ann_Lee/Ann_Lee_0001.jpg": b"first",
    "Ann_Lee/Ann_Lee_0002.jpg": b"second one",
    "Bob/Bob_0001.jpg": b"third",
    "Bob/Bob_0003.jpg": b"fourth",
}
PAIRS = "1\t1\nAnn_Lee\t1\t2\nAnn_Lee\t2\tBob\t3\n"


def folder(root: Path, files: dict[str, bytes] = FILES, pairs: str = PAIRS) -> Path:
    for name, content in files.items():
        path = root / "lfw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "pairs.txt").write_text(pairs)
    return root


def archive(root: Path, files: dict[str, bytes] = FILES, mode: str = "w") -> Path:
    with tarfile.open(root / "lfw.tar", mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(f"lfw/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (root / "pairs.txt").write_text(PAIRS)
    return root


def contents(dataset: LFW) -> dict[str, bytes]:
    return {photo.key: dataset.read(photo) for photo in dataset.photos}


# --- small copies -------------------------------------------------------------------------------


@pytest.mark.parametrize("laid_out", [folder, archive])
def test_a_folder_and_a_tar_hold_the_same_photos(laid_out, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dataset = LFW(laid_out(tmp_path))
    assert contents(dataset) == FILES
    assert [photo.identity for photo in dataset.photos] == ["Ann_Lee", "Ann_Lee", "Bob", "Bob"]
    assert DATASETS.get("lfw") is LFW


def test_photos_are_in_alphabetical_order_whatever_the_tar_has(tmp_path: Path) -> None:
    shuffled = dict(reversed(FILES.items()))
    assert [photo.key for photo in LFW(archive(tmp_path, shuffled)).photos] == sorted(FILES)


def test_only_photos_as_distributed_count(tmp_path: Path) -> None:
    others = {
        "Ann_Lee/Bob_0001.jpg": b"in the wrong folder",
        "Ann_Lee/Ann_Lee_1.jpg": b"short number",
        "Ann_Lee/Ann_Lee_0009.png": b"another format",
        "README/readme.txt": b"text",
    }
    assert contents(LFW(archive(tmp_path, FILES | others))) == FILES


def test_copies_under_a_wrong_name_are_left_out(tmp_path: Path) -> None:
    copies = {"Ricky_Ray/Ricky_Ray_0001.jpg": b"Bart Hendricks"}
    assert contents(LFW(archive(tmp_path, FILES | copies))) == FILES


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    archive(tmp_path)
    with tarfile.open(tmp_path / "lfw.tar", "a") as tar:
        link = tarfile.TarInfo("lfw/Eve/Eve_0001.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert "Eve/Eve_0001.jpg" not in contents(LFW(tmp_path))


def test_pairs_are_found_with_their_folds(tmp_path: Path) -> None:
    pairs = LFW(folder(tmp_path)).official_pairs()
    assert pairs.left.tolist() == [0, 1]
    assert pairs.right.tolist() == [1, 3]
    assert pairs.same.tolist() == [True, False]
    assert pairs.folds.tolist() == [0, 0]


def test_a_pair_without_its_photo_is_an_error_and_never_dropped(tmp_path: Path) -> None:
    less = {name: content for name, content in FILES.items() if name != "Bob/Bob_0003.jpg"}
    dataset = LFW(folder(tmp_path, less))
    with pytest.raises(DataError, match=r"names Bob/Bob_0003\.jpg, which is not in .*: restore"):
        dataset.official_pairs()


def test_a_missing_list_of_pairs_is_named(tmp_path: Path) -> None:
    dataset = LFW(folder(tmp_path))
    (tmp_path / "pairs.txt").unlink()
    with pytest.raises(DataError, match=r"pairs\.txt is not a file"):
        dataset.official_pairs()


def test_a_photo_that_vanished_is_named(tmp_path: Path) -> None:
    dataset = LFW(folder(tmp_path))
    (tmp_path / "lfw" / "Bob" / "Bob_0001.jpg").unlink()
    with pytest.raises(DataError, match=r"Bob_0001\.jpg is not a file"):
        dataset.read(dataset.photos[2])


def test_without_a_folder_it_says_how_to_give_one() -> None:
    with pytest.raises(DataError, match=r"lfw is not shipped: give the folder .* with --data-root"):
        LFW()


@pytest.mark.parametrize("root", [".", "gone"])
def test_a_folder_without_photos_is_named(root: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither lfw\.tar nor a folder lfw with images: g"):
        LFW(tmp_path / root)


def test_a_cut_tar_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path) / "lfw.tar"
    path.write_bytes(path.read_bytes()[: 3 * 512 + 100])
    with pytest.raises(DataError, match=r"lfw\.tar is not a whole, uncompressed tar archive \("):
        LFW(tmp_path)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_tar_is_refused(mode: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lfw\.tar is not a whole, uncompressed tar archive \("):
        LFW(archive(tmp_path, mode=mode))


# --- the real one -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lfw(lfw_root: Path) -> LFW:
    return LFW(lfw_root)


def test_the_distribution_is_complete(lfw: LFW) -> None:
    assert len(lfw.photos) == 13_233 - 2
    assert len({photo.identity for photo in lfw.photos}) == 5_749 - 2
    # Every other file is one of its own.
    assert len({hashlib.sha256(lfw.read(photo)).digest() for photo in lfw.photos}) == 13_231
    for photo in lfw.photos[::3001]:
        assert decode(lfw.read(photo), where=photo.key).shape == (250, 250, 3)


def test_the_official_protocol_has_ten_balanced_folds(lfw: LFW) -> None:
    pairs = lfw.official_pairs()
    assert len(pairs.left) == 6000
    for fold in range(10):
        assert pairs.same[pairs.folds == fold].sum() == 300
        assert (~pairs.same[pairs.folds == fold]).sum() == 300
    people = np.array([photo.identity for photo in lfw.photos])
    assert np.array_equal(people[pairs.left] == people[pairs.right], pairs.same)


def test_the_people_of_the_pairs_are_the_victims(lfw: LFW) -> None:
    sizes = SplitSizes(
        pairs_per_fold=30,
        probes=96,
        attacker_images=1200,
        defender_images=1200,
        gallery_people=400,
    )
    split = lfw.split(sizes, 0)
    people = np.array([photo.identity for photo in lfw.photos])
    victims = set(people[split.evaluation])
    assert len(split.pairs.left) == 300
    assert len(split.probes) == 96
    assert not victims & set(people[split.attacker])
    assert not victims & set(people[split.defender])
