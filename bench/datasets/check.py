"""What a set of face images holds, and whether two sets share people or photos.

People are compared by name, without regard to case, accents' encoding and separators. Names without
a letter, such as the labels of a `.rec`, number the people of one set and are not compared.

Photos are compared by the signs of low frequencies of the gray image scaled to 32x32: 64 bits find
candidates (at most `MAX_DISTANCE` differ), 256 bits confirm them. Measured on 7,701 aligned LFW
faces: every copy is found that was scaled by half or two, has noise (sigma 5) or was encoded again
at JPEG quality 50; 94 % with a fifth more contrast and brightness, 84 % at gamma 1.5, 75 % without
a margin of one pixel; and none of the 29.6 million pairs of different files counts as a copy. Not
found are copies that are mirrored, rotated, cropped by more, or aligned differently: clean means
that no copy was found, not that there is none. IJB's crops are not read.

A set takes 40 bytes per photo in memory, and images are read one at a time.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bench.assets import file_sha256
from bench.datasets.folder import Folder
from bench.datasets.ijb import GALLERIES, read_one_to_n, read_one_to_one
from bench.datasets.images import decode
from bench.datasets.insightface_bin import read_bin
from bench.datasets.recordio import IndexedRecords
from bench.errors import DataError, UserError
from bench.registry import DATASETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bench.datasets.base import Dataset
    from bench.datasets.ijb import Name

    Prints = NDArray[np.uint64]

MAX_DISTANCE = 4
"""Most bits of 64 in which near-duplicates differ."""

MAX_FINE_DISTANCE = 24
"""Most bits of 256 in which near-duplicates differ."""

EXAMPLES = 5
"""How many shared people and photos a report names."""

_SIDE = 32
_FREQUENCIES = 16
_COARSE = 8
_WORDS = 1 + _FREQUENCIES**2 // 64
# Without the constant: brightness is no likeness.
_COSINES = np.cos(
    np.pi * np.outer(np.arange(1, _FREQUENCIES + 1), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE)
)

# Four differing bits leave at least two of six bands as they are.
_BANDS = [0x7FF << 11 * band for band in range(4)] + [0x3FF << 44, 0x3FF << 54]
_CANDIDATES = 1 << 20


@dataclass(frozen=True)
class Contents:
    """One set.

    Attributes:
        name: As the user gave it.
        facts: What a report says about it, as (label, value).
        people: Names by their normalised form; empty if people are numbered.
        keys: Name of each photo within the set.
        prints: (photos, 5) uint64, what photos are compared by.
    """

    name: str
    facts: list[tuple[str, str]]
    people: dict[str, str]
    keys: Sequence[object]
    prints: Prints


@dataclass(frozen=True)
class Overlap:
    """What two sets share.

    Attributes:
        people: Names in the first and in the second set.
        photos: For each photo of the first set that has a near-duplicate in the second: both keys.
    """

    people: list[tuple[str, str]]
    photos: list[tuple[object, object]]


def check(targets: Sequence[str], data_root: Path | None) -> tuple[str, bool]:
    """Describe sets and compare every two of them.

    Args:
        targets: Registered datasets, `.bin` and `.rec` files, folders of IJB's lists or of people.
        data_root: Folder of the registered datasets that are not shipped.

    Returns:
        The report, and whether no two sets share a person or a photo.

    Raises:
        UserError: A target is nothing of that kind, or cannot be read.
    """
    sets = [read_set(target, data_root) for target in targets]
    overlaps = [(pair, overlap(*pair)) for pair in combinations(sets, 2)]
    parts = [_described(contents) for contents in sets]
    parts += [_compared(first, second, shared) for (first, second), shared in overlaps]
    clean = not any(shared.people or shared.photos for _, shared in overlaps)
    return "\n\n".join(parts), clean


def read_set(target: str, data_root: Path | None) -> Contents:
    """Read one set, every image of it once.

    Raises:
        UserError: The target is nothing that can be checked, or cannot be read.
    """
    path = Path(target)
    if target in DATASETS.names():
        return _dataset(target, _registered(target, data_root))
    if path.suffix == ".bin":
        return _bin(path)
    if path.suffix == ".rec":
        return _rec(path)
    if path.is_dir():
        name = next((name for name in GALLERIES if any(path.glob(f"{name}_*"))), None)
        return _dataset(target, Folder(path)) if name is None else _ijb(path, name)
    raise UserError(
        f"{target} is no registered dataset ({', '.join(DATASETS.names())}), .bin or .rec file, "
        "folder of IJB's lists or folder of people: check the name."
    )


def overlap(first: Contents, second: Contents) -> Overlap:
    """Return the people and photos that two sets share."""
    names = sorted(first.people.keys() & second.people.keys())
    match = near_duplicates(first.prints, second.prints)
    return Overlap(
        [(first.people[name], second.people[name]) for name in names],
        [(first.keys[row], second.keys[match[row]]) for row in np.flatnonzero(match >= 0).tolist()],
    )


def fingerprint(image: NDArray[np.uint8]) -> Prints:
    """Return what an RGB image is compared by: (5,), one word of candidates' bits, four finer."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    frequencies = _COSINES @ small @ _COSINES.T
    low = frequencies[:_COARSE, :_COARSE]
    bits = np.concatenate([(low > np.median(low)).ravel(), (frequencies > 0).ravel()])
    return np.packbits(bits).view(np.uint64)


def near_duplicates(first: Prints, second: Prints) -> NDArray[np.intp]:
    """Return for each photo of one set the row of a near-duplicate in the other, or -1.

    Args:
        first: (photos, 5) fingerprints.
        second: (photos, 5) fingerprints.
    """
    # A photo may be in many pairs of a list: each is looked up once.
    left, place = np.unique(first, axis=0, return_inverse=True)
    right, row = np.unique(second, axis=0, return_index=True)
    match = np.full(len(left), -1)
    for one, other in combinations(_BANDS, 2):
        mask = np.uint64(one | other)
        missing = np.flatnonzero(match < 0)
        for rows, columns in _candidates(left[missing, 0] & mask, right[:, 0] & mask):
            near = _near(left[missing[rows]], right[columns])
            match[missing[rows[near]]] = row[columns[near]]
    return match[place.ravel()]


def _candidates(
    keys: Prints, others: Prints
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield the places of equal keys, about `_CANDIDATES` at a time."""
    order = np.argsort(others)
    ordered = others[order]
    start = np.searchsorted(ordered, keys, side="left")
    count = np.searchsorted(ordered, keys, side="right") - start
    stops = np.cumsum(count)
    block = stops // _CANDIDATES
    for number in np.unique(block[count > 0]):
        rows = np.flatnonzero((block == number) & (count > 0))
        repeats = count[rows]
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        yield np.repeat(rows, repeats), order[np.repeat(start[rows], repeats) + within]


def _near(first: Prints, second: Prints) -> NDArray[np.bool_]:
    differing = np.bitwise_count(first ^ second)
    fine = differing[:, 1:].sum(axis=1, dtype=np.intp)
    return (differing[:, 0] <= MAX_DISTANCE) & (fine <= MAX_FINE_DISTANCE)


def normalised(name: str) -> str:
    """Return a person's name without regard to case and separators; empty if it has no letter."""
    text = unicodedata.normalize("NFKC", name).casefold()
    words = re.sub(r"[\W_]+", " ", text).strip()
    return words if any(character.isalpha() for character in words) else ""


class _Images:
    """Manifest and fingerprints of the images of a set, seen one after the other."""

    def __init__(self, name: str, count: int) -> None:
        self.prints = np.empty((count, _WORDS), np.uint64)
        self._name = name
        self._manifest = hashlib.sha256()
        self._seen = 0

    def add(self, data: bytes, person: object, key: object) -> None:
        self.prints[self._seen] = fingerprint(decode(data, where=f"{self._name}, image {key}"))
        self._seen += 1
        self._line(hashlib.sha256(data).hexdigest(), person, key)

    def add_pairs(self, *columns: NDArray[np.generic]) -> None:
        for fields in zip(*columns, strict=True):
            self._line(*(int(field) for field in fields))

    def facts(self) -> list[tuple[str, str]]:
        return [("manifest", f"sha256 {self._manifest.hexdigest()}")]

    def _line(self, *fields: object) -> None:
        self._manifest.update(("\t".join(map(str, fields)) + "\n").encode())


def _registered(name: str, data_root: Path | None) -> Dataset:
    kind = DATASETS.get(name)
    try:
        return kind()
    except DataError:  # it is not shipped
        if data_root is None:
            raise
        return kind(data_root)


def _dataset(name: str, dataset: Dataset) -> Contents:
    images = _Images(name, len(dataset.photos))
    for photo in dataset.photos:
        images.add(dataset.read(photo), photo.identity, photo.key)
    people = [photo.identity for photo in dataset.photos]
    facts = _people_facts(people)
    pairs = dataset.official_pairs()
    if pairs is not None:
        facts += _pair_facts(pairs.same, pairs.folds)
        images.add_pairs(pairs.left, pairs.right, pairs.same, pairs.folds)
    named = {key: person for person in set(people) if (key := normalised(person))}
    keys = [photo.key for photo in dataset.photos]
    return Contents(name, facts + images.facts(), named, keys, images.prints)


def _bin(path: Path) -> Contents:
    pairs = read_bin(path, allow_numpy=True)
    keys = range(len(pairs.spans))
    images = _Images(str(path), len(keys))
    for index in keys:
        images.add(pairs.encoded(index), "", index)
    images.add_pairs(pairs.same, pairs.folds)
    facts = [("photos", f"{len(keys):,} in pairs; the file names no people")]
    facts += _pair_facts(pairs.same, pairs.folds) + images.facts()
    return Contents(str(path), facts, {}, keys, images.prints)


def _rec(path: Path) -> Contents:
    records = IndexedRecords(path)
    keys = records.image_keys().tolist()
    images = _Images(str(path), len(keys))
    people = [records.identity(key) for key in keys]
    for key, person in zip(keys, people, strict=True):
        images.add(records.record(key).image, person, key)
    return Contents(str(path), _people_facts(people) + images.facts(), {}, keys, images.prints)


def _ijb(meta: Path, name: Name) -> Contents:
    faces = (lists := read_one_to_one(meta, name)).faces
    searched = read_one_to_n(meta, name)
    people = [f"{len(np.unique(part.subjects)):,}" for part in searched.galleries]
    facts = [
        ("photos", f"{len(faces.images):,} crops, not read, of {_distinct(faces.media)} media"),
        ("templates", _distinct(faces.templates)),
        *_pair_facts(lists.pairs.same),
        ("identities", f"{' and '.join(people)} in the galleries"),
        ("probes", f"{len(searched.probes.templates):,}"),
    ]
    digest = hashlib.sha256()
    for path in sorted(meta.glob(f"{name}_*")):
        digest.update(f"{file_sha256(path)}\t{path.name}\n".encode())
    facts.append(("manifest", f"sha256 {digest.hexdigest()}"))
    return Contents(str(meta), facts, {}, [], np.empty((0, _WORDS), np.uint64))


def _people_facts(people: Sequence[str] | Sequence[int]) -> list[tuple[str, str]]:
    _, counts = np.unique(people, return_counts=True)
    each = f"{counts.min()} to {counts.max()} photos each, median {np.median(counts):g}"
    return [("photos", f"{len(people):,}"), ("identities", f"{len(counts):,} ({each})")]


def _pair_facts(
    same: NDArray[np.bool_], folds: NDArray[np.integer] | None = None
) -> list[tuple[str, str]]:
    genuine = int(same.sum())
    counts = f"{len(same):,} ({genuine:,} genuine, {len(same) - genuine:,} impostor)"
    return [("pairs", counts), *([] if folds is None else [("folds", _distinct(folds))])]


def _distinct(values: NDArray[np.integer]) -> str:
    return f"{len(np.unique(values)):,}"


def _described(contents: Contents) -> str:
    return "\n".join([contents.name, *(f"  {label:<11}{text}" for label, text in contents.facts)])


def _compared(first: Contents, second: Contents, shared: Overlap) -> str:
    lines = [f"{first.name} and {second.name}"]
    lines += _found("people of the same name", shared.people, bool(first.people and second.people))
    lines += _found(
        "near-duplicate photos", shared.photos, bool(len(first.keys) and len(second.keys))
    )
    return "\n".join(lines)


def _found(what: str, pairs: Sequence[tuple[object, object]], compared: bool) -> list[str]:
    """Return how many pairs of equals two sets have, and the first of them."""
    if not compared:
        return [f"  {what}: not compared, one of the sets has none to compare"]
    shown = [f"    {one} = {other}" for one, other in pairs[:EXAMPLES]]
    return [f"  {what}: {len(pairs):,}", *shown, *(["    ..."] if len(pairs) > EXAMPLES else [])]
