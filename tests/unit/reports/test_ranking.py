from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.metrics import clustered_rate, mcnemar
from bench.metrics.intervals import paired_difference, paired_p_value
from reports.ranking import ranks
from reports.samples import Sample

PEOPLE = np.repeat(np.arange(60), 2)


def rates(hits: NDArray[np.bool_], photos: str = "a") -> Sample:
    """Return hits on two photos of each of 60 people."""
    names = tuple(f"{photos}{place}" for place in range(len(hits)))
    return Sample(hits.astype(float), PEOPLE, None, None, names, rate=True)


def level(hits: int, photos: str = "a") -> Sample:
    return rates(np.arange(120) < hits, photos)


def test_nested_hits_are_told_apart_though_their_intervals_overlap() -> None:
    """12 people more are found, and none less: the sign test gives 2^-11."""
    low, high = level(48), level(72)
    intervals = [clustered_rate(x.values, PEOPLE) for x in (low, high)]
    assert intervals[0].high > intervals[1].low
    assert ranks([high, low, high]) == [2, 1, 2]


def test_on_different_probes_only_intervals_that_do_not_overlap_count() -> None:
    assert ranks([level(48), level(72, "b")]) == [1, 1]
    assert ranks([level(12), level(100, "b")]) == [1, 2]


def test_what_could_not_be_scored_has_no_rank() -> None:
    assert ranks([None, level(120), level(0)]) == [None, 2, 1]
    assert ranks([None]) == [None]
    assert ranks([]) == []


def test_the_level_is_shared_by_all_pairs() -> None:
    """Six people are found by one attack alone: .03 for two defenses, not at a level of .05 / 3."""
    base = np.arange(120) < 60
    more = np.arange(120) < 72
    assert 0.05 / 3 < paired_p_value(more, base, PEOPLE) < 0.05
    assert ranks([rates(base), rates(more)]) == [1, 2]
    assert ranks([rates(base), rates(more), rates(base)]) == [1, 1, 1]
    # Holm: two pairs that stand apart at .05 / 3 leave the third a level of .05.
    assert ranks([rates(base), rates(more), level(0)]) == [2, 3, 1]


def test_level_defenses_are_ranked_level_and_others_are_not() -> None:
    """Eight defenses with the same chance, people who differ; then one at a third of it."""
    generator = np.random.default_rng(5)
    wrong, found = 0, 0
    for _ in range(100):
        easy = generator.beta(2, 2, 60)[PEOPLE]
        equal = [rates(generator.random(120) < easy) for _ in range(8)]
        wrong += any(rank != 1 for rank in ranks(equal))
        placed = ranks([*equal, rates(generator.random(120) < easy / 3)])
        found += placed == [2] * 8 + [1]
    assert wrong <= 100 * (0.05 + 0.03)
    assert found >= 0.8 * 100


def test_the_p_value_is_the_level_whose_interval_ends_at_zero() -> None:
    generator = np.random.default_rng(0)
    seeds = np.arange(120) % 3
    for more in (None, seeds):
        a, b = generator.random((2, 120)) < [[0.6], [0.4]]
        chance = paired_p_value(a, b, PEOPLE, seeds=more)
        found = paired_difference(a, b, PEOPLE, seeds=more, confidence=1 - chance)
        assert found.low == pytest.approx(0, abs=1e-9)
    assert paired_p_value([1, 0], [0, 0], [7, 7]) == 1


def test_the_p_value_is_near_the_exact_one_of_independent_probes() -> None:
    for b, c in ((12, 4), (20, 10), (9, 9)):
        first = np.arange(200) < b
        second = (np.arange(200) >= 100) & (np.arange(200) < 100 + c)
        found = paired_p_value(first, second, np.arange(200))
        assert found == pytest.approx(mcnemar(b, c), abs=0.05)
