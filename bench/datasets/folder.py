"""Your own photos: one sub-folder per person, and pairs in LFW's format if there are any."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from bench.datasets.base import Dataset, PairList, Photo
from bench.datasets.images import MAX_BYTES, reading
from bench.datasets.pairs import file_name, parse_pairs
from bench.errors import DataError
from bench.registry import DATASETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.datasets.pairs import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".pgm", ".bmp", ".webp")
"""How the names of images end, in lower or upper case."""


@DATASETS.register("folder")
class Folder(Dataset):
    """A folder with one sub-folder of images per person.

    Hidden files are passed over, and so are files beside the people; anything else that is not an
    image is refused, because a photo that is left out in silence changes the result.

    Args:
        root: The folder: `Name/anything.jpg`, and optionally `pairs.txt` in LFW's format, whose
            `Name 1` is the image `Name/Name_0001` with any of `SUFFIXES`.

    Raises:
        DataError: There is no such folder, no person in it, a person without an image, a file that
            is not an image, or a link that leaves the folder.
    """

    name = "folder"
    credit = "Photos from a folder of your own"

    def __init__(self, root: Path | None = None) -> None:
        if root is None:
            raise DataError(
                "The dataset folder is a folder of your own: give the one that holds a sub-folder "
                "of images per person with --data-root."
            )
        self._root = root
        people = [path for path in _visible(root, root) if path.is_dir()]
        if not people:
            raise DataError(
                f"{root} has no images: give a folder that holds a sub-folder of images per person."
            )
        self.photos = [photo for person in people for photo in _photos(person, root)]

    def read(self, photo: Photo) -> bytes:
        """Return one image file."""
        with reading(self._root / photo.key, max_bytes=MAX_BYTES) as stream:
            return stream.read()

    def official_pairs(self) -> PairList | None:
        """Return the pairs of `pairs.txt`, or None if there is no such file.

        Raises:
            DataError: The list cannot be read, names an image that is not there, or one that is
                there with two suffixes.
        """
        path = self._root / "pairs.txt"
        return listed_pairs(path, self._listed_as()) if path.exists() else None

    def _listed_as(self) -> dict[str, int]:
        """Return the place of each photo by the name under which a list of pairs knows it."""
        position: dict[str, int] = {}
        for index, photo in enumerate(self.photos):
            key = str(PurePosixPath(photo.key).with_suffix(".jpg"))
            if position.setdefault(key, index) != index:
                other = self.photos[position[key]].key
                raise DataError(
                    f"{self._root} has both {other} and {photo.key}, which pairs.txt cannot tell "
                    "apart: rename one of them."
                )
        return position


def listed_pairs(path: Path, position: Mapping[str, int]) -> PairList:
    """Return the pairs of a list in LFW's format as places of photos.

    Args:
        path: The list.
        position: Place of every photo by its name in LFW's style, `Name/Name_0001.jpg`.

    Raises:
        DataError: The list cannot be read, or names an image that is not there.
    """
    listed = parse_pairs(path)

    def find(images: list[Image]) -> list[int]:
        keys = [file_name(*image) for image in images]
        for key in keys:
            if key not in position:
                raise DataError(
                    f"{path} names {key}, which is not in {path.parent}: restore the image, "
                    "since dropping its pair would change the protocol."
                )
        return [position[key] for key in keys]

    return PairList(
        np.array(find(listed.left)), np.array(find(listed.right)), listed.same, listed.folds
    )


def _photos(person: Path, root: Path) -> list[Photo]:
    files = _visible(person, root)
    if not files:
        raise DataError(f"{person} has no image: add photos of this person or remove the folder.")
    for path in files:
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise DataError(
                f"{path} is not an image file: remove it, or convert it to one of "
                f"{', '.join(SUFFIXES)}."
            )
    return [Photo(f"{person.name}/{path.name}", person.name) for path in files]


def _visible(folder: Path, root: Path) -> list[Path]:
    """Return what a folder holds, by name, without hidden files.

    Raises:
        DataError: It cannot be listed, a name cannot be printed, or a link leaves the root.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror}): check the path and its permissions."
        ) from error
    for path in paths:
        if not path.name.isprintable():
            raise DataError(f"{folder} holds {path.name!a}: rename it to printable text.")
        if path.is_symlink() and not _stays(path, root):
            raise DataError(
                f"{path} is a link that leads nowhere or out of {root}: copy the file there."
            )
    return paths


def _stays(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # it is broken, or a loop
        return False
