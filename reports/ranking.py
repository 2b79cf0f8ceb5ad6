"""Ranks that order only what the probes can tell apart."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from bench.metrics.intervals import paired_p_value
from reports.samples import Sample, estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ALPHA = 0.05
"""Chance that a table orders even one pair of defenses that are level."""


def ranks(samples: Sequence[Sample | None]) -> list[int | None]:
    """Return 1 + the number of samples whose rate is lower beyond doubt; None for None.

    Two samples of the same probes are told apart by a paired test over identities, two samples of
    different probes by intervals that do not overlap. Holm's step-down shares the level among all
    pairs of the table. Samples with the same rank cannot be told apart from the same others.
    """
    known = [sample for sample in samples if sample is not None]
    if not known:
        return [None] * len(samples)
    rates = np.array([sample.values.mean() for sample in known])
    better = _apart(known) & (rates[:, None] < rates[None, :])
    found = iter(1 + better.sum(0))
    return [None if sample is None else int(next(found)) for sample in samples]


def _apart(samples: Sequence[Sample]) -> NDArray[np.bool_]:
    """Return (samples, samples): whether two of them can be told apart."""
    chance = _chances(samples)
    unpaired = np.isnan(chance)
    left = np.triu(np.ones_like(unpaired), k=1)
    found = np.zeros_like(unpaired)
    while left.any():
        level = ALPHA / left.sum()
        new = left & np.where(unpaired, _disjoint(samples, level), chance <= level)
        if not new.any():
            break
        found |= new
        left &= ~new
    return found | found.T


def _chances(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return the p-value of every pair of samples of the same probes, NaN for other pairs."""
    groups: dict[object, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        seeds = None if sample.seeds is None else sample.seeds.tobytes()
        groups[sample.trials, sample.identities.tobytes(), seeds].append(place)
    found = np.full((len(samples), len(samples)), np.nan)
    for members in groups.values():
        for i, j in itertools.combinations(members, 2):
            a, b = samples[i], samples[j]
            found[i, j] = paired_p_value(a.values, b.values, a.identities, seeds=a.seeds)
    return found


def _disjoint(samples: Sequence[Sample], level: float) -> NDArray[np.bool_]:
    """Return (samples, samples): whether two intervals at this level do not overlap."""
    found = [estimate(sample, 1 - level) for sample in samples]
    low, high = np.array([x.low for x in found]), np.array([x.high for x in found])
    return (high[:, None] < low[None, :]) | (high[None, :] < low[:, None])
