"""Splits: who plays which role follows from the seed alone, and nobody plays two."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.datasets.base import (
    PHOTOS_PER_PERSON,
    Dataset,
    PairList,
    Photo,
    Split,
    SplitSizes,
    check_disjoint,
)
from bench.errors import DataError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Crowd(Dataset):
    """People with as many photos as they are given."""

    name = "crowd"
    credit = "nobody"

    def __init__(self, counts: list[int], pairs: PairList | None = None) -> None:
        self.photos = [
            Photo(f"p{person}/{number}", f"p{person}")
            for person, count in enumerate(counts)
            for number in range(count)
        ]
        self._pairs = pairs

    def read(self, photo: Photo) -> bytes:
        return photo.key.encode()

    def official_pairs(self) -> PairList | None:
        return self._pairs

    def who(self, photos: NDArray[np.intp]) -> set[str]:
        return {self.photos[photo].identity for photo in photos}


def sizes(**changes: Any) -> SplitSizes:
    numbers = {
        "victims": 6,
        "probes": 6,
        "attacker_images": 40,
        "defender_images": 35,
        "gallery_people": 3,
    }
    return SplitSizes(**numbers | changes)


EVEN = Crowd([10] * 30)
UNEVEN = Crowd([1, 2, 3, 25] * 24)
SEEDS = [0, 1, 7, 2**40]
CROWDS = [pytest.param(EVEN, id="even"), pytest.param(UNEVEN, id="uneven")]


def roles(split: Split) -> dict[str, list[int]]:
    pairs = split.pairs
    arrays = {
        "defender": split.defender,
        "attacker": split.attacker,
        "probes": split.probes,
        "gallery": split.gallery,
        "calibration": split.calibration,
        "left": pairs.left,
        "right": pairs.right,
        "folds": pairs.folds,
        **{f"mates {place}": mates for place, mates in enumerate(split.mates)},
    }
    return {name: array.tolist() for name, array in arrays.items()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("crowd", CROWDS)
def test_nobody_plays_two_roles(crowd: Crowd, seed: int) -> None:
    split = crowd.split(sizes(), seed)
    victims = crowd.who(split.evaluation)
    defender, attacker = crowd.who(split.defender), crowd.who(split.attacker)
    assert not victims & defender
    assert not victims & attacker
    assert not attacker & defender
    assert not victims & crowd.who(split.calibration)
    assert len(victims) == 6


@pytest.mark.parametrize("crowd", CROWDS)
def test_roles_have_the_sizes_that_were_asked_for(crowd: Crowd) -> None:
    split = crowd.split(sizes(), 3)
    for role, size in (("attacker", 40), ("defender", 35), ("probes", 6)):
        photos = getattr(split, role)
        assert len(photos) == len(set(photos.tolist())) == size
    strangers = crowd.who(split.calibration) - crowd.who(split.attacker) - crowd.who(split.defender)
    assert len(strangers) == 3


def test_the_seed_fixes_the_split_and_another_changes_it() -> None:
    first = roles(EVEN.split(sizes(), 5))
    assert roles(Crowd([10] * 30).split(sizes(), 5)) == first
    other = roles(EVEN.split(sizes(), 6))
    for role in ("defender", "attacker", "probes", "gallery"):
        assert other[role] != first[role]


def test_more_gallery_people_leave_the_other_roles_alone() -> None:
    few, more = roles(EVEN.split(sizes(), 5)), roles(EVEN.split(sizes(gallery_people=9), 5))
    for role in ("defender", "attacker", "probes", "left", "right", "mates 0"):
        assert few[role] == more[role]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("crowd", CROWDS)
def test_probes_are_never_in_the_gallery_and_their_people_always(crowd: Crowd, seed: int) -> None:
    split = crowd.split(sizes(), seed)
    assert not set(split.probes.tolist()) & set(split.gallery.tolist())
    assert crowd.who(split.probes) <= crowd.who(split.gallery)
    enrolled = Counter(crowd.photos[photo].identity for photo in split.gallery)
    assert set(enrolled.values()) == {1}
    # The attacker's own people are nobody that the system knows.
    assert not crowd.who(split.gallery) & crowd.who(split.attacker)


@pytest.mark.parametrize("crowd", CROWDS)
def test_mates_are_all_other_used_photos_of_the_person(crowd: Crowd) -> None:
    split = crowd.split(sizes(), 1)
    for probe, mates, other in zip(split.probes, split.mates, split.other_photos, strict=True):
        assert crowd.who(mates) == crowd.who(np.array([probe]))
        assert probe not in mates
        owned = sum(photo.identity == crowd.photos[probe].identity for photo in crowd.photos)
        assert len(mates) == min(owned, PHOTOS_PER_PERSON) - 1
        assert other in mates
        assert len(mates) == 1 or other not in split.gallery


def test_probes_are_dealt_evenly_among_the_victims() -> None:
    split = EVEN.split(sizes(probes=15), 0)
    shares = Counter(EVEN.photos[probe].identity for probe in split.probes)
    assert sorted(shares.values()) == [2, 2, 2, 3, 3, 3]


def test_a_person_with_one_photo_is_no_probe() -> None:
    crowd = Crowd([1] * 20 + [4] * 20)
    split = crowd.split(sizes(victims=12, probes=5, attacker_images=20, defender_images=20), 2)
    assert all(len(mates) >= 1 for mates in split.mates)
    single = {f"p{n}" for n in range(20)}
    victims_enrolled = crowd.who(split.gallery) & crowd.who(split.evaluation)
    assert not victims_enrolled & single


# --- pairs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_all_pairs_of_the_victims_with_balanced_folds(seed: int) -> None:
    split = EVEN.split(sizes(), seed)
    pairs = split.pairs
    assert len(pairs.left) == 60 * 59 // 2
    assert len({frozenset(pair) for pair in zip(pairs.left, pairs.right, strict=True)}) == 1770
    people = np.array([photo.identity for photo in EVEN.photos])
    assert np.array_equal(pairs.same, people[pairs.left] == people[pairs.right])
    assert (pairs.folds[pairs.same] >= 0).all()
    inside = [EVEN.who(np.concatenate(both(pairs, fold))) for fold in (0, 1)]
    assert set(pairs.folds.tolist()) == {-1, 0, 1}
    assert not inside[0] & inside[1]
    for fold in (0, 1):
        chosen = pairs.folds == fold
        assert pairs.same[chosen].sum() == (~pairs.same[chosen]).sum() == 3 * 45


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("victims", [4, 5, 7, 10, 11])
def test_every_fold_has_as_many_impostors_as_genuine_pairs(crowd: Crowd, victims: int) -> None:
    pairs = crowd.split(sizes(victims=victims, probes=2), 0).pairs
    folds = set(pairs.folds.tolist()) - {-1}
    assert len(folds) == max(2, victims // 3)
    for fold in folds:
        same = pairs.same[pairs.folds == fold]
        assert same.sum() == (~same).sum()
        assert crowd is UNEVEN or same.any()


def both(pairs: PairList, fold: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return pairs.left[pairs.folds == fold], pairs.right[pairs.folds == fold]


def official(crowd_size: int = 40, per_fold: int = 6) -> PairList:
    """Four folds of pairs among ten people each, with three photos a person."""
    rows = []
    for fold in range(4):
        start = 10 * fold
        for number in range(per_fold):
            person = 3 * (start + number)
            rows.append((person, person + 1, True, fold))
            rows.append((person + 2, person + 5, False, fold))
    left, right, same, folds = (np.array(column) for column in zip(*rows, strict=True))
    return PairList(left, right, same, folds)


OFFICIAL = Crowd([3] * 90, official())


@pytest.mark.parametrize("seed", SEEDS)
def test_official_pairs_name_the_victims(seed: int) -> None:
    wanted = sizes(victims=None, pairs_per_fold=4, probes=10)
    split = OFFICIAL.split(wanted, seed)
    pairs = split.pairs
    assert Counter(zip(pairs.folds.tolist(), pairs.same.tolist(), strict=True)) == {
        (fold, same): 2 for fold in range(4) for same in (True, False)
    }
    listed = {tuple(row) for row in np.stack([official().left, official().right], 1).tolist()}
    assert {tuple(row) for row in np.stack([pairs.left, pairs.right], 1).tolist()} <= listed
    people = np.array([photo.identity for photo in OFFICIAL.photos])
    assert np.array_equal(pairs.same, people[pairs.left] == people[pairs.right])
    victims = OFFICIAL.who(np.concatenate([pairs.left, pairs.right]))
    assert OFFICIAL.who(split.evaluation) == victims
    assert not victims & (OFFICIAL.who(split.attacker) | OFFICIAL.who(split.defender))


def test_all_official_pairs_can_be_taken() -> None:
    split = OFFICIAL.split(sizes(victims=None, pairs_per_fold=12, probes=10), 0)
    assert sorted(split.pairs.left.tolist()) == sorted(official().left.tolist())


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("victims", 31),
        ("probes", 6 * 9 + 1),
        ("attacker_images", 241),
        ("defender_images", 201),
        ("gallery_people", 17),
    ],
)
def test_a_dataset_that_is_too_small_names_the_field(field: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"crowd is too small for split\.{field} \(.*\): lower"):
        EVEN.split(sizes(**{field: value}), 0)


@pytest.mark.parametrize(("field", "value"), [("probes", 6 * 9), ("gallery_people", 16)])
def test_a_dataset_that_is_just_large_enough_can_be_split(field: str, value: int) -> None:
    split = EVEN.split(sizes(**{field: value}), 0)
    assert len(np.unique(split.gallery)) == 6 + 4 + (16 if field == "gallery_people" else 3)


def test_too_many_official_pairs_name_the_field() -> None:
    with pytest.raises(UserError, match=r"too small for split\.pairs_per_fold \(6 left where 7"):
        OFFICIAL.split(sizes(victims=None, pairs_per_fold=14), 0)


def test_a_dataset_without_pairs_needs_victims() -> None:
    with pytest.raises(UserError, match=r"crowd has no official pairs: set split\.victims"):
        EVEN.split(sizes(victims=None), 0)


@pytest.mark.parametrize("wrong", [{"victims": 6, "pairs_per_fold": 4}, {"victims": None}])
def test_a_dataset_with_pairs_needs_their_number(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"set split\.pairs_per_fold in the suite, not split\.vict"):
        OFFICIAL.split(sizes(**wrong), 0)


# --- disjoint roles -----------------------------------------------------------------------------

A, B, C = ("Ann", "aa"), ("Bob", "bb"), ("Cid", "cc")


def test_roles_without_anything_in_common_pass() -> None:
    check_disjoint({"defender": [A, A, ("Ann", "ab")], "attacker": [B], "victims": [C], "none": []})


@pytest.mark.parametrize("role", ["defender", "attacker"])
def test_a_person_in_two_roles_is_refused(role: str) -> None:
    crowd: dict[str, Sequence[tuple[str, str]]] = {
        "defender": [A],
        "attacker": [B],
        "victims": [C],
    }
    crowd["victims"] = [C, (crowd[role][0][0], "new")]
    name = crowd[role][0][0]
    with pytest.raises(DataError, match=f"person {name} is in the roles {role} and victims of one"):
        check_disjoint(crowd)


def test_the_same_photo_under_two_names_is_refused() -> None:
    with pytest.raises(
        DataError, match="photo with sha256 aa is in the roles attacker and victims"
    ):
        check_disjoint({"attacker": [A], "victims": [("Zoe", "aa")]})
