"""The raw values behind a number, and intervals of it at any level.

Rows carry 95 % intervals; a gate and a ranking need other levels, and differences on the same
trials. Both come from the values per probe, or the scores per pair, that a result file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.errors import MetricError
from bench.linkage import LINKAGE, Pairs, linkability
from bench.metrics import (
    Estimate,
    PairErrors,
    clustered_mean,
    clustered_rate,
    equal_error_difference,
    equal_error_rate,
    equal_errors,
    pair_difference,
    pair_rate,
    paired_difference,
    tar_at_far,
    verification_accuracy,
)
from bench.metrics.definitions import definition

if TYPE_CHECKING:
    from bench.result_file import CellValues, ResultFile
    from bench.results import Row, Score


@dataclass(frozen=True)
class Sample:
    """Raw values of one metric, of all seeds.

    Attributes:
        values: (trials,) numbers.
        identities: (trials,) number of the person on the probe, or on the pair's left photo.
        others: (pairs,) number of the person on the right photo; None for probes.
        seeds: (trials,) seed of each; None if there is one.
        trials: Names of the trials: two samples with the same can be paired.
        rate: Whether values lie in [0, 1] by definition.
        weights: (pairs,) for an EER, how much each pair's error moves it; None where all trials
            count alike.
    """

    values: NDArray[np.float64]
    identities: NDArray[np.int_]
    others: NDArray[np.int_] | None
    seeds: NDArray[np.int_] | None
    trials: tuple[str, ...]
    rate: bool
    weights: NDArray[np.float64] | None = None


class _Part(NamedTuple):
    """Raw values of one seed: as a sample, with names."""

    values: NDArray[np.float64]
    identities: NDArray[np.str_]
    others: NDArray[np.str_] | None
    trials: Sequence[str]
    weights: NDArray[np.float64] | None = None


def sample(file: ResultFile, rows: Sequence[Row]) -> Sample:
    """Return the raw values behind rows that differ in their seed alone.

    Raises:
        MetricError: There are no raw values behind a row, or none for this metric.
    """
    parts = [_part(file, row) for row in rows]
    seeds = [np.full(len(part.values), row.seed) for part, row in zip(parts, rows, strict=True)]
    people = [part.identities for part in parts]
    others = [part.others for part in parts if part.others is not None]
    weights = [part.weights for part in parts if part.weights is not None]
    # Numbers instead of names: intervals are taken many times, and sorting text is slow.
    _, numbers = np.unique(np.concatenate([*people, *others]), return_inverse=True)
    count = sum(len(part) for part in people)
    return Sample(
        np.concatenate([part.values for part in parts]),
        numbers[:count],
        numbers[count:] if others else None,
        np.concatenate(seeds) if len(rows) > 1 else None,
        tuple(name for part in parts for name in part.trials),
        _is_rate(rows[0]),
        np.concatenate(weights) / len(rows) if weights else None,
    )


def estimator(file: ResultFile, rows: Sequence[Row]) -> Callable[[float], Estimate]:
    """Return the number of rows that differ in their seed alone, with its interval, by confidence.

    Raises:
        MetricError: There are no raw values behind a row, or none for this metric.
    """
    cell = file.cells.get(rows[0].cell)
    if cell is None or cell.kind != "linkage":
        return partial(estimate, sample(file, rows))
    if len(rows) > 1:
        raise MetricError(f"{rows[0].metric} of {len(rows)} seeds has no interval: run one seed.")
    metric = rows[0].metric

    @cache  # a gate asks for a level more than once, and each answer permutes all scores
    def of(confidence: float) -> Estimate:
        for score in linked(file, cell, confidence):
            if score.metric == metric:
                return score.estimate
        raise MetricError(f"The raw values say nothing about {metric}.")

    of(0.95)  # raises now what it would raise later
    return of


def estimate(found: Sample, confidence: float) -> Estimate:
    """Return the mean of a sample with its two-sided interval.

    Raises:
        MetricError: The values are no sample of a rate or mean.
    """
    if found.others is not None and found.weights is not None:
        errors = PairErrors(found.values, found.weights)
        return equal_error_rate(errors, found.identities, found.others, confidence=confidence)
    if found.others is not None:
        return pair_rate(found.values, found.identities, found.others, confidence=confidence)
    function = clustered_rate if found.rate else clustered_mean
    return function(found.values, found.identities, seeds=found.seeds, confidence=confidence)


def difference(a: Sample, b: Sample, confidence: float) -> Estimate:
    """Return the mean difference of two samples of the same trials, a minus b, with its interval.

    Raises:
        MetricError: As `estimate`.
    """
    if a.others is not None:
        pairs = (a.identities, a.others)
        if a.weights is not None and b.weights is not None:
            errors = (PairErrors(a.values, a.weights), PairErrors(b.values, b.weights))
            return equal_error_difference(*errors, *pairs, confidence=confidence)
        return pair_difference(a.values, b.values, *pairs, confidence=confidence)
    if a.rate:
        return paired_difference(
            a.values, b.values, a.identities, seeds=a.seeds, confidence=confidence
        )
    same = a.values == b.values  # infinite values included, whose difference is not a number
    lost = np.where(
        same, 0.0, np.subtract(a.values, b.values, where=~same, out=np.zeros(len(same)))
    )
    return clustered_mean(lost, a.identities, seeds=a.seeds, confidence=confidence)


def _pair_scores(file: ResultFile, row: Row) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the scores of all pairs behind a row of utility, and which show one person.

    Raises:
        MetricError: There are no raw values behind the row.
    """
    cell = file.cells.get(row.cell)
    way = row.metric.rpartition(".")[2]
    pairs = None if cell is None else file.pairs.get(cell.pairs or "")
    if cell is None or pairs is None or way not in cell.values:
        raise MetricError(f"There are no raw values behind {row.metric}: it has no interval.")
    left, right = pairs.identities()
    scores = cell.array(way)
    if len(scores) != len(left):
        raise MetricError(f"The cell {row.cell} has {len(scores)} scores for {len(left)} pairs.")
    return scores, left == right


def linked(file: ResultFile, cell: CellValues, confidence: float = 0.95) -> list[Score]:
    """Return what the scores of a linkage cell say, with intervals.

    Raises:
        MetricError: Its pairs are missing, or its scores say nothing.
    """
    pairs = file.pairs.get(cell.pairs or "")
    if pairs is None or LINKAGE not in cell.values:
        raise MetricError("There are no linkage scores: run the suite again.")
    left, right = np.array(pairs.left, dtype=np.intp), np.array(pairs.right, dtype=np.intp)
    people, with_pair = pairs.identities(), np.array(pairs.fold, dtype=np.intp)
    one_for_all = bool((with_pair < 0).any())
    if one_for_all:
        with_pair = np.unique(people[0], return_inverse=True)[1]
    homes = np.full(len(pairs.photos), -1)
    homes[left] = with_pair  # Every photo is the left one of a pair: its record is renewed.
    return linkability(
        cell.array(LINKAGE), Pairs(left, right, *people, homes, one_for_all), confidence
    )


def _is_rate(row: Row) -> bool:
    about = definition(row.definition)
    return (about.low, about.high) == (0, 1)


def _part(file: ResultFile, row: Row) -> _Part:
    cell = file.cells.get(row.cell)
    if cell is None:
        raise MetricError(f"There are no raw values behind {row.metric}: it has no interval.")
    if cell.kind == "linkage":
        raise MetricError(
            f"{row.metric} has no sample that could be paired: bound it in a [[guarantee]]."
        )
    return _pairs(file, cell, row) if cell.kind == "utility" else _probes(file, cell, row)


def _probes(file: ResultFile, cell: CellValues, row: Row) -> _Part:
    key = row.metric if row.judge is None else f"{row.judge}/{row.metric}"
    if key not in cell.values:
        raise MetricError(f"The cell {row.cell} has no raw values of {key}: run the suite again.")
    values = cell.array(key)
    probes = file.seeds[str(row.seed)].probes
    if len(values) != len(probes):
        raise MetricError(
            f"The cell {row.cell} has {len(values)} values for {len(probes)} probes: "
            "run the suite again."
        )
    known = ~np.isnan(values)
    people = np.array([probe.identity for probe in probes])
    names = [probe.photo for probe, kept in zip(probes, known, strict=True) if kept]
    return _Part(values[known], people[known], None, names)


def _pairs(file: ResultFile, cell: CellValues, row: Row) -> _Part:
    """Return what decides a utility: which pairs are decided right or wrong, or mates accepted."""
    metric = row.metric.rpartition(".")[0]
    scores, same = _pair_scores(file, row)
    pairs = file.pairs[cell.pairs or ""]
    left, right = pairs.identities()
    photos = [photo.photo for photo in pairs.photos]
    joined = zip(pairs.left, pairs.right, strict=True)
    names = np.array([f"{photos[a]} {photos[b]}" for a, b in joined])
    if metric == "accuracy":
        folds = np.array(pairs.fold)
        kept = folds >= 0
        right_ones = verification_accuracy(scores[kept], same[kept], folds[kept]).correct
        values = right_ones.astype(np.float64)
        return _Part(values, left[kept], right[kept], names[kept].tolist())
    if metric.startswith("tar@far="):
        (point,) = tar_at_far(scores[same], scores[~same], [float(metric.partition("=")[2])])
        accepted = (scores[same] > point.threshold).astype(np.float64)
        return _Part(accepted, left[same], None, names[same].tolist())
    if metric == "eer":
        errors = equal_errors(scores, same)
        return _Part(errors.wrong, left, right, names.tolist(), errors.weights)
    raise MetricError(f"{row.metric} has no interval: guarantee an accuracy, a TAR or an EER.")
