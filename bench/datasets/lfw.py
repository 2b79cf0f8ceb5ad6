"""Labeled Faces in the Wild: a folder or a tar as distributed, and its official pairs."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath

from bench.datasets.base import Dataset, PairList, Photo
from bench.datasets.folder import listed_pairs
from bench.datasets.images import MAX_BYTES, reading
from bench.errors import DataError
from bench.registry import DATASETS

_KEY = re.compile(r"(?P<name>[^/]+)/(?P=name)_\d{4}\.jpg")

_COPIES = {"Raul_Ibanez/Raul_Ibanez_0001.jpg", "Ricky_Ray/Ricky_Ray_0001.jpg"}
"""The same files as Carlos_Beltran_0001 and Bart_Hendricks_0001, which official pairs name: one
photo cannot show two people, nor play two roles."""


@DATASETS.register("lfw")
class LFW(Dataset):
    """Labeled Faces in the Wild: 13,233 photos of 5,749 people, 250x250.

    Two of them are copies of others under a wrong name and are left out.

    Huang, Ramesh, Berg and Learned-Miller, University of Massachusetts Amherst TR 07-49, 2007.

    Args:
        root: A folder that holds `pairs.txt` and either `lfw.tar` or the folder `lfw` as
            distributed (`lfw/Name_Surname/Name_Surname_0001.jpg`).

    Raises:
        DataError: There is no such folder or archive, or an image that a pair names is missing.
    """

    name = "lfw"
    credit = "Labeled Faces in the Wild, University of Massachusetts Amherst (research use)"

    def __init__(self, root: Path | None = None) -> None:
        if root is None:
            raise DataError(
                "The dataset lfw is not shipped: give the folder that holds lfw.tar (or lfw/) and "
                "pairs.txt with --data-root."
            )
        self._root = root
        self._members = _tar_members(root / "lfw.tar") or _folder_files(root / "lfw")
        if not self._members:
            raise DataError(
                f"{root} holds neither lfw.tar nor a folder lfw with images: give the folder that "
                "does with --data-root."
            )
        self.photos = [
            Photo(key=key, identity=key.partition("/")[0])
            for key in sorted(self._members)
            if key not in _COPIES
        ]

    def read(self, photo: Photo) -> bytes:
        """Return one JPEG file."""
        path, offset, size = self._members[photo.key]
        with reading(path) as stream:
            stream.seek(offset)
            return stream.read(min(size, MAX_BYTES))

    def official_pairs(self) -> PairList:
        """Return the official 10 folds of 300 + 300 pairs.

        Raises:
            DataError: The list cannot be read, or names an image that is not there.
        """
        position = {photo.key: index for index, photo in enumerate(self.photos)}
        return listed_pairs(self._root / "pairs.txt", position)


def _tar_members(path: Path) -> dict[str, tuple[Path, int, int]]:
    """Return (file, offset, size) of every image in a tar; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        with tarfile.open(path, "r:") as archive:
            return {
                key: (path, member.offset_data, member.size)
                for member in archive
                if member.isreg() and (key := _key(member.name))
            }
    except tarfile.TarError as error:
        raise DataError(
            f"{path} is not a whole, uncompressed tar archive ({error}): fetch it again."
        ) from error


def _folder_files(folder: Path) -> dict[str, tuple[Path, int, int]]:
    return {
        key: (path, 0, path.stat().st_size)
        for path in folder.glob("*/*.jpg")
        if (key := _key(path.as_posix()))
    }


def _key(name: str) -> str | None:
    """Return `Name/Name_0001.jpg` from a path that ends so, else None."""
    key = "/".join(PurePosixPath(name).parts[-2:])
    return key if _KEY.fullmatch(key) else None
