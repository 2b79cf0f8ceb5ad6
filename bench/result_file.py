"""A finished run in one file: its rows, and the raw values that they were computed from.

`veilbench submit` writes and checks such files, a leaderboard is a folder of them, and a gate pins
one as its baseline. They are JSON (gzip, if the name ends in .gz) under the committed schema
`bench/schemas/result-<version>.json`. Images are left out, names of photos and people are not.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from bench import results
from bench.curves import Curve
from bench.errors import DataError, UserError, first_fault
from bench.keys import digest
from bench.results import Row
from bench.store import atomic_path

VERSION = 1
"""Raised when a file of today's code could not be read by yesterday's; `UPGRADES` keeps up."""

UPGRADES: dict[int, Any] = {}
"""By version: a function that turns a document of that version into one of the next."""

LARGEST = 512 * 2**20
"""Bytes that a file may have when unpacked."""


def _written(value: float | None) -> float | str | None:
    """Return a number as strict JSON can hold it: infinity as text, NaN as null."""
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"


Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(_written, return_type=Any),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"enum": ["Infinity", "-Infinity"]}, {"type": "null"}]}
    ),
]
"""A raw value; null in the file, NaN in memory, where a probe has none."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Photo(_Part):
    """A photo by name, and whom it shows."""

    photo: str
    identity: str


class Member(Photo):
    """A photo in a role, with the sha256 of its aligned crop."""

    sha256: str


class Seed(_Part):
    """One seed's split.

    Attributes:
        probes: The photos whose records leaked, in the order of all raw values.
        roles: Who plays which role: "defender", "attacker" and "victims".
    """

    probes: list[Photo]
    roles: dict[str, list[Member]]


class PairList(_Part):
    """Pairs of photos, by their place in `photos`: for verification, or records to be linked.

    Attributes:
        photos: The photos.
        left: Of each pair, the first.
        right: Of each pair, the second.
        fold: Of each pair, the fold of the verification test, or -1. Of records to be linked, the
            pair of applications that the left photo's person is with, or -1 where there is one.
    """

    photos: list[Photo]
    left: list[Annotated[int, Field(ge=0)]]
    right: list[Annotated[int, Field(ge=0)]]
    fold: list[int]

    @model_validator(mode="after")
    def _refer_to_photos(self) -> Self:
        if not len(self.left) == len(self.right) == len(self.fold):
            raise ValueError("left, right and fold differ in length")
        if max([*self.left, *self.right], default=-1) >= len(self.photos):
            raise ValueError("a pair names a photo that is not there")
        return self

    def identities(self) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
        """Return whom the left and the right photos show."""
        people = np.array([photo.identity for photo in self.photos])
        return people[self.left], people[self.right]


class CellValues(_Part):
    """Raw values of one cell.

    Attributes:
        kind: What was scored.
        seed: Its seed.
        pairs: For utility and linkage: key of its pairs.
        values: Numbers per probe by "metric" or "judge/metric"; for utility, scores per pair by way
            of matching; for linkage, scores per pair by "linkage".
        facts: What was recorded beside them, such as timings, and under "training" the learning
            curves of the attack.
    """

    kind: Literal["attack", "reference", "worst-case", "utility", "linkage"]
    seed: int
    pairs: str | None = None
    values: dict[str, list[Number]]
    facts: dict[str, Any] = {}

    @model_validator(mode="after")
    def _hold_curves(self) -> Self:
        _ = self.curves
        return self

    @property
    def curves(self) -> list[Curve]:
        """Learning curves of what the attack trained; none in files of older versions."""
        return TypeAdapter(list[Curve]).validate_python(self.facts.get("training", []))

    def array(self, name: str) -> NDArray[np.float64]:
        """Return one column."""
        return np.array(self.values[name], dtype=np.float64)


class FileRow(Row):
    """A result row, with infinite values as strict JSON can hold them."""

    value: Number | None
    ci_low: Number | None = None
    ci_high: Number | None = None


class ResultFile(_Part):
    """A finished run.

    Attributes:
        version: Of the schema.
        sha256: Of the canonical JSON of everything else.
        run: What `run.json` says.
        seeds: Splits by seed.
        pairs: Verification pairs by key.
        cells: Raw values by cell key.
        rows: The result rows.
    """

    version: Literal[1]
    sha256: str
    run: dict[str, Any]
    seeds: dict[str, Seed]
    pairs: dict[str, PairList]
    cells: dict[str, CellValues]
    rows: list[FileRow]

    @model_validator(mode="after")
    def _refer_to_seeds(self) -> Self:
        lost = {str(row.seed) for row in self.rows} - self.seeds.keys()
        if lost:
            raise ValueError(f"rows name a seed that is not there: {min(lost)}")
        return self

    def content(self) -> str:
        """Return the sha256 that the file should name."""
        return digest(self.model_dump(mode="json", exclude={"sha256"}))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of result files of this version."""
    about = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"veilbench result file, version {VERSION}",
    }
    return {**ResultFile.model_json_schema(mode="serialization"), **about}


def pack(folder: Path) -> ResultFile:
    """Return the finished run of a folder.

    Raises:
        UserError: A file of the run is missing or unusable.
    """
    rows = [FileRow(**row.model_dump()) for row in results.read(folder)]
    pairs: dict[str, PairList] = {}
    keys = dict.fromkeys(row.cell for row in rows if row.cell)
    try:
        file = ResultFile(
            version=1,
            sha256="",
            run=json.loads((folder / "run.json").read_bytes()),
            seeds={str(n): _seed(folder, n) for n in dict.fromkeys(row.seed for row in rows)},
            cells={key: _cell(_inside(folder, key), pairs) for key in keys},
            pairs=pairs,
            rows=rows,
        )
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(
            f"The run {folder} cannot be packed ({_first_line(error)}): run the suite again."
        ) from error
    return file.model_copy(update={"sha256": file.content()})


def write(file: ResultFile, target: Path) -> None:
    """Write a result file, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    data = file.model_dump_json(indent=None).encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as path:
            path.write_bytes(gzip.compress(data, mtime=0) if target.suffix == ".gz" else data)
    except OSError as error:
        raise UserError(
            f"The file {target} cannot be written ({error.strerror}): give another path."
        ) from error


def read(path: Path, sha256: str | None = None) -> ResultFile:
    """Read a result file of this version or an older one.

    Args:
        path: The file, or the folder of a finished run.
        sha256: What the bytes of the file must hash to, if it is pinned.

    Raises:
        UserError: It is missing, altered, too large, of a newer version, or against the schema.
    """
    if path.is_dir() and sha256 is None:
        return pack(path)
    try:
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if sha256 is not None and found != sha256:
            raise DataError(
                f"{path} has the sha256 {found}, not the pinned {sha256}: restore the file, or pin "
                "the new one on purpose."
            )
        document = json.loads(_unpacked(data) if path.suffix == ".gz" else data)
        return ResultFile.model_validate(_upgraded(path, document))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): write one with veilbench submit."
        ) from error
    except (ValueError, RecursionError, zlib.error, EOFError) as error:
        raise DataError(
            f"{path} is no result file ({_first_line(error)}): write one with veilbench submit."
        ) from error


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes: what a gate pins."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _upgraded(path: Path, document: Any) -> Any:
    version = document.get("version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise DataError(
            f"{path} has version {version} of the schema, this veilbench knows {VERSION}: "
            "install a newer one."
        )
    while version in UPGRADES:
        document = UPGRADES[version](document)
        version = document["version"]
    return document


def _unpacked(data: bytes) -> bytes:
    """Return gzip's content, as long as it is not absurdly long."""
    unpacker = zlib.decompressobj(wbits=31)
    content = unpacker.decompress(data, LARGEST)
    if not unpacker.eof:
        raise ValueError(f"it is cut off, or larger than {LARGEST >> 20} MiB")
    return content


def _inside(folder: Path, key: str) -> Path:
    """Return a cell's folder. Keys are data: they must not name other places."""
    if Path(key).name != key:
        raise ValueError(f"the cell {key!r} is no name of a folder")
    return folder / "cells" / key


def _seed(folder: Path, seed: int) -> Seed:
    place = folder / "seeds" / str(seed)
    roles: dict[str, list[Member]] = {}
    for line in _lines(place / "people.csv"):
        roles.setdefault(line.pop("role"), []).append(Member(**line))
    probes = [
        Photo(photo=line["probe"], identity=line["identity"])
        for line in _lines(place / "probes.csv")
    ]
    return Seed(probes=probes, roles=roles)


def _cell(folder: Path, pairs: dict[str, PairList]) -> CellValues:
    about = json.loads((folder / "cell.json").read_bytes())
    lines = _lines(folder / "values.csv")
    common = {"kind": about["kind"], "seed": about["seed"], "facts": about.get("facts", {})}
    if about["kind"] not in {"utility", "linkage"}:
        return CellValues(**common, values=_columns(lines, {"probe", "identity"}))
    found = _pair_list(lines)
    key = digest(found.model_dump())
    pairs[key] = found
    names = {"left", "right", "left_identity", "right_identity", "same", "fold"}
    return CellValues(**common, pairs=key, values=_columns(lines, names))


def _columns(lines: list[dict[str, str]], others: set[str]) -> dict[str, list[float]]:
    names = [name for name in lines[0] if name not in others]
    return {name: [float(line[name]) for line in lines] for name in names}


def _pair_list(lines: list[dict[str, str]]) -> PairList:
    places: dict[str, int] = {}
    photos = []
    for line in lines:
        for side in ("left", "right"):
            if line[side] not in places:
                places[line[side]] = len(places)
                photos.append(Photo(photo=line[side], identity=line[f"{side}_identity"]))
    return PairList(
        photos=photos,
        left=[places[line["left"]] for line in lines],
        right=[places[line["right"]] for line in lines],
        fold=[int(line["fold"]) for line in lines],
    )


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        lines: Iterable[dict[str, str]] = csv.DictReader(stream)
        return list(lines)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return str(first_fault(error))
    return f"{type(error).__name__}: {error}".splitlines()[0]
