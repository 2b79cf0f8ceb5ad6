from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.linkage import APPLICATIONS, linkability, linked_pairs


def linkage_rows(strength: float) -> dict[str, Any]:
    """Return rows for 60 people with two photos, whose linkage scores rise with identity."""
    people = np.repeat([f"person {number:02}" for number in range(60)], 2)
    noise = np.random.default_rng(3).normal(size=(120, 120))
    same = people[:, None] == people[None]
    pairs = linked_pairs(people)
    scores = (noise + strength * same)[pairs.left, pairs.right]
    return {score.metric: score for score in linkability(scores, pairs)}


def test_records_that_cannot_be_linked_stay_within_the_null() -> None:
    table = linkage_rows(0)
    flags = dict(flag.split("=") for flag in table["d-sys"].flags)
    assert table["d-sys"].estimate.value <= float(flags["null-p95"]) + 0.03
    auc = table["linkage-auc"].estimate
    assert auc.low < 0.5 < auc.high
    # 60 people with two ordered pairs of different photos each.
    assert auc.n == table["d-sys"].estimate.n == 120
    assert table["renewed-linked"].estimate.n == 120
    assert table["renewed-linked"].estimate.value < 0.05


def test_records_that_can_be_linked_are() -> None:
    table = linkage_rows(20)
    assert table["d-sys"].estimate.value == pytest.approx(1)
    assert table["linkage-auc"].estimate.value == 1
    assert table["renewed-linked"].estimate.value == 1
    # A shift of one deviation: AUC is the normal distribution function at 1 / sqrt 2.
    assert linkage_rows(1)["linkage-auc"].estimate.value == pytest.approx(0.760, abs=0.05)


def test_people_share_pairs_of_applications_where_they_are_many() -> None:
    people = np.array([f"person {number:03}" for number in range(2 * APPLICATIONS)])
    homes = linked_pairs(np.repeat(people, 3)).homes
    assert np.bincount(homes).tolist() == [6] * APPLICATIONS
    assert (homes.reshape(-1, 3) == homes[::3, None]).all()
    assert len(np.unique(linked_pairs(people[:7]).homes)) == 7


def test_the_interval_knows_that_people_of_an_application_share_its_keys() -> None:
    """One pair of keys in five undoes itself; each has two people with four photos."""
    people = np.repeat([f"person {number:03}" for number in range(2 * APPLICATIONS)], 4)
    pairs = linked_pairs(people)
    random = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(40):
        weak = random.random(APPLICATIONS) < 0.2
        scores = random.normal(size=len(pairs.left))
        scores[pairs.mated & weak[pairs.homes[pairs.left]]] += 20
        found = {score.metric: score.estimate for score in linkability(scores, pairs)}
        auc = found["linkage-auc"]
        covered += auc.low <= 0.5 + 0.5 * 0.2 <= auc.high
        widths.append(auc.high - auc.low)
        assert auc.clusters == found["renewed-linked"].clusters == APPLICATIONS
    assert covered >= 34
    # Four standard deviations of a mean of 64 that are 1 in a fifth of the cases and .5 else.
    assert np.median(widths) == pytest.approx(4 * 0.5 * (0.2 * 0.8 / APPLICATIONS) ** 0.5, rel=0.2)
