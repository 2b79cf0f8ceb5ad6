"""What every dataset offers, and how its people are split into roles that never overlap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from bench.errors import DataError, UserError

Indices = NDArray[np.intp]

PHOTOS_PER_PERSON = 10
"""Photos of one victim or gallery person that are used, so that few people do not dominate."""

PEOPLE_PER_FOLD = 3
"""Victims per verification fold, at least, where a dataset has no official pairs."""


@dataclass(frozen=True)
class Photo:
    """One photo of one person: its name in the dataset, and whom it shows."""

    key: str
    identity: str


@dataclass(frozen=True)
class PairList:
    """Verification pairs as data.

    Attributes:
        left: (P,) indices of photos.
        right: (P,) indices of photos.
        same: (P,) whether both show the same person.
        folds: (P,) fold of each pair in fold accuracy, or -1 for a pair that only rates over all
            pairs (TAR, EER) use. Folds hold as many genuine as impostor pairs.
    """

    left: Indices
    right: Indices
    same: NDArray[np.bool_]
    folds: NDArray[np.int_]


class SplitSizes(BaseModel):
    """How many people and photos each role gets. One seed and these numbers fix a split.

    Attributes:
        victims: Number of victims, at least 4; None where official pairs name them.
        pairs_per_fold: Official pairs used per fold, half of them matched; None without a list.
        probes: Number of victims' photos whose records leak, spread evenly over the victims.
        attacker_images: Photos of the attacker's own people.
        defender_images: Photos of the defender's own people.
        gallery_people: Other people, in the gallery and behind the thresholds.
        mirror: Whether attacker and defender also use the mirror images of their photos.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    victims: int | None = Field(default=None, ge=4)
    pairs_per_fold: int | None = Field(default=None, ge=2, multiple_of=2)
    probes: int = Field(ge=1)
    attacker_images: int = Field(ge=2)
    defender_images: int = Field(ge=2)
    gallery_people: int = Field(ge=0)
    mirror: bool = False


@dataclass(frozen=True)
class Split:
    """Who plays which role. All arrays hold indices of the dataset's photos.

    Attributes:
        defender: Photos that a defense may learn from.
        attacker: Photos that an attack may learn from.
        probes: Victims' photos whose records leak.
        mates: For every probe, all other photos of the same person that are used.
        gallery: One photo per enrolled person: victims first, then defender's and gallery people;
            never a probe.
        calibration: Photos of everyone but the victims, behind the thresholds.
        pairs: Verification pairs among the victims.
    """

    defender: Indices
    attacker: Indices
    probes: Indices
    mates: tuple[Indices, ...]
    gallery: Indices
    calibration: Indices
    pairs: PairList

    @property
    def other_photos(self) -> Indices:
        """For every probe, one other photo of the person: not the gallery's, where there is one."""
        enrolled = set(self.gallery.tolist())
        return np.array([min(mates, key=lambda photo: photo in enrolled) for mates in self.mates])

    @property
    def evaluation(self) -> Indices:
        """All victims' photos, sorted."""
        return np.unique(
            np.concatenate([self.probes, *self.mates, self.pairs.left, self.pairs.right])
        )


class Dataset(ABC):
    """Photos of people, in a fixed order.

    Attributes:
        name: Name in the registry.
        credit: Whom to credit, and on what terms.
        photos: Every photo.
    """

    name: ClassVar[str]
    credit: ClassVar[str]
    photos: Sequence[Photo]

    @abstractmethod
    def read(self, photo: Photo) -> bytes:
        """Return the encoded image file.

        Raises:
            DataError: The file cannot be read.
        """

    def official_pairs(self) -> PairList | None:
        """Return the dataset's own verification pairs, if it has any."""
        return None

    def split(self, sizes: SplitSizes, seed: int) -> Split:
        """Assign people to roles by seed.

        Raises:
            UserError: The dataset is too small for the sizes.
        """
        return _Casting(self, sizes, seed).split()


class _Casting:
    """One split being made: people are taken from those that have no role yet."""

    def __init__(self, dataset: Dataset, sizes: SplitSizes, seed: int) -> None:
        self._name = dataset.name
        self._sizes = sizes
        self._random = np.random.default_rng(seed)
        self._official = dataset.official_pairs()
        self._identity = [photo.identity for photo in dataset.photos]
        self._photos: dict[str, Indices] = _by_identity(dataset.photos)
        self._free = list(self._random.permutation(sorted(self._photos)))

    def split(self) -> Split:
        official = self._official
        pairs = self._all_pairs() if official is None else self._some_official_pairs(official)
        victims = self._people_of(np.concatenate([pairs.left, pairs.right]))
        enrolled, probes = self._probes(victims)
        attacker = self._images(self._sizes.attacker_images, "attacker_images")
        defender = self._images(self._sizes.defender_images, "defender_images")
        others = self._people(self._sizes.gallery_people, "gallery_people")
        known = [*self._people_of(defender), *others]
        strangers = np.concatenate([self._capped(name) for name in others]) if others else defender
        return Split(
            defender=defender,
            attacker=attacker,
            probes=probes,
            mates=tuple(self._mates(probe) for probe in probes),
            gallery=np.concatenate([enrolled, [self._photos[name][0] for name in known]]),
            calibration=np.unique(np.concatenate([strangers, defender, attacker])),
            pairs=pairs,
        )

    def _all_pairs(self) -> PairList:
        """Take the victims; return all pairs of their photos, with balanced folds for accuracy."""
        if self._sizes.victims is None:
            raise UserError(
                f"The dataset {self._name} has no official pairs: set split.victims in the suite."
            )
        victims = self._people(self._sizes.victims, "victims")
        photos = np.concatenate([self._photos[name] for name in victims])
        # Two folds at least, and every fold with two people: else it has no impostors.
        count = max(2, len(victims) // PEOPLE_PER_FOLD)
        fold_of = {name: place % count for place, name in enumerate(victims)}
        owner = np.array([self._identity[photo] for photo in photos])
        fold = np.array([fold_of[name] for name in owner])
        left, right = np.triu_indices(len(photos), k=1)
        same = owner[left] == owner[right]
        folds = np.where(fold[left] == fold[right], fold[left], -1)
        for number in set(fold_of.values()):
            kinds = [np.flatnonzero((folds == number) & kind) for kind in (same, ~same)]
            balance = min(len(inside) for inside in kinds)
            for inside in kinds:
                folds[self._random.choice(inside, len(inside) - balance, replace=False)] = -1
        return PairList(photos[left], photos[right], same, folds)

    def _some_official_pairs(self, pairs: PairList) -> PairList:
        """Return the same number of matched and mismatched pairs of every official fold."""
        if self._sizes.victims is not None or self._sizes.pairs_per_fold is None:
            raise UserError(
                f"The victims of {self._name} are the people in its official pairs: set "
                "split.pairs_per_fold in the suite, not split.victims."
            )
        half = self._sizes.pairs_per_fold // 2
        chosen = []
        for fold in np.unique(pairs.folds):
            for same in (True, False):
                candidates = np.flatnonzero((pairs.folds == fold) & (pairs.same == same))
                self._require(len(candidates), half, "pairs_per_fold")
                chosen.append(np.sort(self._random.choice(candidates, half, replace=False)))
        rows = np.concatenate(chosen)
        for name in self._people_of(np.concatenate([pairs.left[rows], pairs.right[rows]])):
            self._free.remove(name)
        return PairList(pairs.left[rows], pairs.right[rows], pairs.same[rows], pairs.folds[rows])

    def _probes(self, victims: list[str]) -> tuple[Indices, Indices]:
        """Return one gallery photo per victim, and the probes, dealt evenly among the victims.

        A victim with a single photo is neither: without another photo of the person nothing says
        whether a reconstruction shows the person or only the photo.
        """
        shuffled = [self._random.permutation(self._capped(name)) for name in victims]
        usable = [photos for photos in shuffled if len(photos) > 1]
        order = self._random.permutation(len(usable))
        rounds = max((len(photos) for photos in usable), default=0)
        dealt = [
            usable[person][turn]
            for turn in range(1, rounds)
            for person in order
            if turn < len(usable[person])
        ]
        self._require(len(dealt), self._sizes.probes, "probes")
        return np.array([photos[0] for photos in usable]), np.array(dealt[: self._sizes.probes])

    def _mates(self, probe: int) -> Indices:
        photos = self._capped(self._identity[probe])
        return photos[photos != probe]

    def _capped(self, name: str) -> Indices:
        return self._photos[name][:PHOTOS_PER_PERSON]

    def _images(self, count: int, field: str) -> Indices:
        """Take people until they have the wanted number of photos; the last one may lose some."""
        taken: list[int] = []
        while len(taken) < count:
            self._require(len(self._free), 1, field)
            taken += list(self._photos[self._free.pop()])
        return np.array(taken[:count])

    def _people(self, count: int, field: str) -> list[str]:
        self._require(len(self._free), count, field)
        return [str(self._free.pop()) for _ in range(count)]

    def _people_of(self, photos: Indices) -> list[str]:
        return sorted({self._identity[photo] for photo in photos})

    def _require(self, available: int, wanted: int, field: str) -> None:
        if available < wanted:
            raise UserError(
                f"The dataset {self._name} is too small for split.{field} "
                f"({available} left where {wanted} are needed): lower the sizes in the suite."
            )


def _by_identity(photos: Sequence[Photo]) -> dict[str, Indices]:
    people: dict[str, list[int]] = defaultdict(list)
    for index, photo in enumerate(photos):
        people[photo.identity].append(index)
    return {name: np.array(indices) for name, indices in people.items()}


def check_disjoint(roles: dict[str, Sequence[tuple[str, str]]]) -> None:
    """Refuse roles that share a person or the content of a photo.

    Args:
        roles: For every role, the (identity, sha256 of the crop) of its photos.

    Raises:
        DataError: An identity or a content hash stands in two roles.
    """
    seen: dict[str, str] = {}
    for role, photos in roles.items():
        for identity, content in set(photos):
            for value, what in ((identity, "person"), (content, "photo with sha256")):
                other = seen.setdefault(value, role)
                if other != role:
                    raise DataError(
                        f"The {what} {value} is in the roles {other} and {role} of one split: "
                        "remove the duplicate from the dataset."
                    )
