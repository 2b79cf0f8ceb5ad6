"""Weights and data files: where they come from, and proof that they are the right ones.

Files travel inside installed packages (`assets.toml` names the package, the file and its sha256).
They are located through the package's metadata and checked; no code of the package is imported. An
environment variable `VEILBENCH_ASSET_<NAME>` gives another path to the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.errors import MissingAssetError


@dataclass(frozen=True)
class Asset:
    """One file that the benchmark needs but does not ship.

    Attributes:
        name: Key in `assets.toml`.
        distribution: Installed package that carries the file.
        file: Path inside the package, as its metadata records it.
        bytes: Size of the file.
        sha256: Hash of the file in hexadecimal.
        license: Licence of the file (not of the package that carries it).
        credit: Whom to cite.
    """

    name: str
    distribution: str
    file: str
    bytes: int
    sha256: str
    license: str
    credit: str

    @property
    def full_credit(self) -> str:
        """Whom to cite, and the licence."""
        return f"{self.credit} ({self.license})"


@cache
def manifest() -> dict[str, Asset]:
    """Return every known asset by name."""
    text = Path(__file__).with_name("assets.toml").read_text(encoding="utf-8")
    return {name: Asset(name=name, **fields) for name, fields in tomllib.loads(text).items()}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def installed_file(distribution: str, file: str) -> Path:
    """Return the path of a file that an installed package recorded, without importing the package.

    Raises:
        MissingAssetError: The package is not installed or does not record the file.
    """
    mend = f"install it with 'python -m pip install {distribution}'"
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingAssetError(f"The package {distribution} is not installed: {mend}.") from None
    for entry in files:
        if entry.as_posix() == file:
            return Path(str(entry.locate()))
    raise MissingAssetError(f"The installed package {distribution} has no file {file}: re{mend}.")


@cache
def locate(name: str) -> Path:
    """Return the checked path of an asset.

    Args:
        name: A key of `assets.toml`, such as "sface".

    Raises:
        MissingAssetError: The file is absent or has another sha256.
    """
    asset = manifest()[name]
    variable = f"VEILBENCH_ASSET_{name.upper().replace('-', '_')}"
    explicit = os.environ.get(variable)
    path = Path(explicit) if explicit else installed_file(asset.distribution, asset.file)
    if not path.is_file():
        raise MissingAssetError(
            f"The file of {name} is missing at {path}: set {variable}, or install it with "
            f"'python -m pip install --force-reinstall {asset.distribution}'."
        )
    found = file_sha256(path)
    if found != asset.sha256:
        raise MissingAssetError(
            f"The file of {name} at {path} was altered (sha256 {found[:12]}…, expected "
            f"{asset.sha256[:12]}…): install it with "
            f"'python -m pip install --force-reinstall {asset.distribution}'."
        )
    return path
