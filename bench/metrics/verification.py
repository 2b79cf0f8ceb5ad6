"""Verification (1:1): fold accuracy, TAR at FAR, ROC, DET, EER and AUC, all from order statistics.

A pair is accepted iff its score is strictly above the threshold. FAR and FMR are synonyms here, and
so are TAR and 1 - FNMR (ISO/IEC 19795-1).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from bench.errors import MetricError
from bench.metrics.arrays import (
    Booleans,
    Doubles,
    Floats,
    Integers,
    Numbers,
    as_labels,
    as_scores,
    to_numpy,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

# Doddington's rule: with 30 errors a rate is within 30 % of the truth with 90 % confidence.
RULE_OF_30 = 30

_STRIDE = 251  # a prime, so that lists with a period are sampled evenly


@dataclass(frozen=True)
class OperatingPoint:
    """The true accept rate at the smallest threshold whose false accept rate is at most `far`.

    Attributes:
        far: The target, in (0, 1].
        tar: Share of genuine scores above the threshold.
        threshold: The (floor(far * impostors) + 1)-th largest impostor score; minus infinity when
            every impostor may pass.
        false_accepts: Impostor scores above the threshold: floor(far * impostors), or fewer if
            scores tie at the threshold.
        achieved_far: false_accepts / impostors, never above `far`.
        genuine: Number of genuine scores.
        impostors: Number of impostor scores.
        supported: Rule of 30: the target allows at least 30 false accepts. Below that the number
            says little, whatever its interval.
    """

    far: float
    tar: float
    threshold: float
    false_accepts: int
    achieved_far: float
    genuine: int
    impostors: int
    supported: bool


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy over folds, each judged at the threshold that is best on the other folds.

    Attributes:
        mode: "exact" or "insightface".
        mean: Mean accuracy over the folds, in [0, 1].
        std: Population standard deviation over the folds. It is no confidence interval: take one
            from `correct`, by identity.
        folds: (folds,) the fold ids, ascending.
        accuracies: (folds,) accuracy on each fold.
        thresholds: (folds,) score above which a pair of that fold counts as the same person.
        correct: (pairs,) whether each pair is decided correctly by its fold's threshold.
    """

    mode: Literal["exact", "insightface"]
    mean: float
    std: float
    folds: npt.NDArray[np.generic]
    accuracies: Doubles
    thresholds: Doubles
    correct: Booleans


@dataclass(frozen=True)
class Roc:
    """Every attainable pair of error rates, from the strictest threshold to the loosest.

    Attributes:
        far: (points,) false accept rate, ascending from 0 to 1.
        tar: (points,) true accept rate, ascending from 0 to 1.
        thresholds: (points,) the distinct scores, descending, then minus infinity; a score is
            accepted iff it is above.
    """

    far: Doubles
    tar: Doubles
    thresholds: Doubles


@dataclass(frozen=True)
class Det:
    """Detection error trade-off: the same points as `Roc`, as two error rates.

    Attributes:
        fmr: (points,) false match rate, ascending from 0 to 1.
        fnmr: (points,) false non-match rate, descending from 1 to 0.
        thresholds: (points,) as in `Roc`.
    """

    fmr: Doubles
    fnmr: Doubles
    thresholds: Doubles


@dataclass(frozen=True)
class PairErrors:
    """What each pair contributes to the EER, which is the sum of wrong * weights.

    Attributes:
        wrong: (pairs,) share of wrong decisions at the threshold of the EER: 0 or 1, between them
            for pairs that share its score and about which a coin decides.
        weights: (pairs,) how far a wrong decision about the pair moves the EER; they sum to 1.
    """

    wrong: Doubles
    weights: Doubles

    @property
    def rate(self) -> float:
        """The EER."""
        return float(self.wrong @ self.weights)


def verification_accuracy(
    scores: Numbers,
    same: Numbers,
    folds: Numbers,
    *,
    mode: Literal["exact", "insightface"] = "exact",
) -> FoldAccuracy:
    """Return the accuracy of same-or-different decisions by cross-validation over given folds.

    "exact" takes the threshold midway between the two neighbouring scores of the other folds that
    split them best; of several best splits the strictest. "insightface" repeats deepinsight's
    `verification.py`: squared distances 2 - 2 cos, thresholds 0, 0.01, ..., 3.99, same iff the
    distance is strictly below, first best threshold.

    Args:
        scores: (pairs,) similarities; cosines in [-1, 1] for "insightface".
        same: (pairs,) true where both images show one person (booleans, or 0 and 1).
        folds: (pairs,) fold id of each pair, integers or strings, in any order. Folds should share
            no identity.
        mode: Which rule picks the thresholds.

    Raises:
        MetricError: Empty or non-finite scores, unequal lengths, fewer than two folds, labels other
            than 0 and 1, cosines out of range, an unknown mode.
    """
    values = as_scores(scores, "scores").astype(np.float64, copy=False)
    truth = _as_truth(same, len(values))
    ids, fold = np.unique(as_labels(folds, "folds", len(values)), return_inverse=True)
    if len(ids) < 2:
        raise MetricError("folds names a single fold; thresholds must come from other folds")
    if mode == "exact":
        thresholds = _best_splits(values, truth, fold, len(ids))
        accepted = values > thresholds[fold]
    elif mode == "insightface":
        distances = _squared_distances(values)
        grid = _best_grid_thresholds(distances, truth, fold, len(ids))
        accepted = distances < grid[fold]
        thresholds = 1 - grid / 2
    else:
        raise MetricError(f"mode must be 'exact' or 'insightface', not {mode!r}")
    correct = accepted == truth
    accuracies = np.bincount(fold, correct) / np.bincount(fold)
    return FoldAccuracy(
        mode=mode,
        mean=float(accuracies.mean()),
        std=float(accuracies.std()),
        folds=ids,
        accuracies=accuracies,
        thresholds=thresholds,
        correct=correct,
    )


def tar_at_far(
    genuine: Numbers, impostor: Numbers, fars: float | Iterable[float]
) -> list[OperatingPoint]:
    """Return the true accept rate at each false accept rate, one point per target, in their order.

    Of I impostor scores at most floor(far * I) pass, computed in exact decimal arithmetic; ties at
    the threshold are rejected. So the achieved rate never exceeds the target, unlike the nearest
    point of a ROC curve.

    Args:
        genuine: (G,) scores of pairs of one person, higher is more alike.
        impostor: (I,) scores of pairs of two people.
        fars: Targets in (0, 1]. A float counts as the decimal it prints as.

    Raises:
        MetricError: Empty or non-finite scores, or a target outside (0, 1].
    """
    positives = as_scores(genuine, "genuine")
    negatives = as_scores(impostor, "impostor")
    # One precision for both, or a threshold could round past an equal genuine score.
    dtype = np.result_type(positives, negatives)
    positives = positives.astype(dtype, copy=False)
    targets = as_fars(fars)
    allowed = [allowed_errors(far, len(negatives)) for far in targets]
    found = _order_statistics(negatives.astype(dtype, copy=False), set(allowed))
    return [
        operating_point(far, *found[k], positives, len(negatives))
        for far, k in zip(targets, allowed, strict=True)
    ]


def threshold_at_fmr(impostor: Numbers, fmr: float) -> float:
    """Return the smallest threshold at which the share of impostor scores above it is <= `fmr`.

    The threshold of `tar_at_far`, for calibration on identities other than those it is used on.

    Args:
        impostor: (I,) scores of pairs of two people.
        fmr: Target in (0, 1].

    Raises:
        MetricError: Empty or non-finite scores, or a target outside (0, 1].
    """
    negatives = as_scores(impostor, "impostor")
    k = allowed_errors(as_fars(fmr)[0], len(negatives))
    return float(_order_statistics(negatives, {k})[k][0])


def roc(genuine: Numbers, impostor: Numbers) -> Roc:
    """Return the exact ROC: one point per distinct score, none dropped.

    Args:
        genuine: (G,) scores of pairs of one person, higher is more alike.
        impostor: (I,) scores of pairs of two people.

    Raises:
        MetricError: Empty or non-finite scores.
    """
    positives = np.sort(as_scores(genuine, "genuine"))
    negatives = np.sort(as_scores(impostor, "impostor"))
    distinct: Floats = np.union1d(positives, negatives)[::-1]
    return Roc(
        far=np.append(_count_above(negatives, distinct) / len(negatives), 1.0),
        tar=np.append(_count_above(positives, distinct) / len(positives), 1.0),
        thresholds=np.append(distinct.astype(np.float64), -np.inf),
    )


def det(genuine: Numbers, impostor: Numbers) -> Det:
    """Return the exact DET curve: false match rate against false non-match rate.

    Args:
        genuine: (G,) scores of pairs of one person, higher is more alike.
        impostor: (I,) scores of pairs of two people.

    Raises:
        MetricError: Empty or non-finite scores.
    """
    curve = roc(genuine, impostor)
    return Det(fmr=curve.far, fnmr=1 - curve.tar, thresholds=curve.thresholds)


def eer(genuine: Numbers, impostor: Numbers) -> float:
    """Return the equal error rate, in [0, 1]: where the straight-line DET curve meets FMR = FNMR.

    Between two attainable points the curve is the straight line that a coin toss between their
    thresholds attains, so the value is unique and needs no grid.

    Args:
        genuine: (G,) scores of pairs of one person, higher is more alike.
        impostor: (I,) scores of pairs of two people.

    Raises:
        MetricError: Empty or non-finite scores.
    """
    curve = det(genuine, impostor)
    after, share = _crossing(curve)
    return float(curve.fmr[after] + share * (curve.fmr[after - 1] - curve.fmr[after]))


def equal_errors(scores: Numbers, same: Numbers) -> PairErrors:
    """Return the EER as errors of the single pairs, from which `equal_error_rate` has an interval.

    Errors at a fixed threshold move FMR by a and FNMR by b; the curves then meet at another
    threshold, and the EER moves by (1 - s) a + s b to first order. s is the share of the change of
    FMR in that of FMR - FNMR along the threshold, here over the thresholds at which both rates
    differ by at most the EER.

    Args:
        scores: (pairs,) similarities, higher is more alike.
        same: (pairs,) true where both images show one person (booleans, or 0 and 1).

    Raises:
        MetricError: No genuine or no impostor pair, non-finite scores, unequal lengths, labels
            other than 0 and 1.
    """
    values = as_scores(scores, "scores")
    truth = _as_truth(same, len(values))
    curve = det(values[truth], values[~truth])
    after, share = _crossing(curve)
    place = np.unique(-values, return_inverse=True)[1]
    accepted = np.where(place < after - 1, 1.0, np.where(place == after - 1, 1 - share, 0.0))
    wrong = np.where(truth, 1 - accepted, accepted)
    width = min(float(wrong[truth].mean()), 0.5)
    slope = 0.5
    if width > 0:
        low, high = np.interp((-width, width), curve.fmr - curve.fnmr, curve.fmr)
        slope = float(high - low) / (2 * width)
    genuine = int(np.count_nonzero(truth))
    weights = np.where(truth, slope / genuine, (1 - slope) / (len(truth) - genuine))
    return PairErrors(wrong, weights)


def auc(genuine: Numbers, impostor: Numbers) -> float:
    """Return P(genuine > impostor) + P(equal) / 2, the area under the ROC, from exact counts.

    Args:
        genuine: (G,) scores of pairs of one person, higher is more alike.
        impostor: (I,) scores of pairs of two people.

    Raises:
        MetricError: Empty or non-finite scores.
    """
    positives = as_scores(genuine, "genuine")
    negatives = np.sort(as_scores(impostor, "impostor"))
    below = np.searchsorted(negatives, positives, side="left").sum()
    not_above = np.searchsorted(negatives, positives, side="right").sum()
    return float(Fraction(int(below + not_above), 2 * len(positives) * len(negatives)))


def as_fars(fars: float | Iterable[float]) -> list[float]:
    """Return the targets as floats.

    Raises:
        MetricError: No target, or one that is no number in (0, 1].
    """
    try:
        targets = [float(str(far)) for far in np.atleast_1d(np.asarray(fars, dtype=object))]
    except ValueError as error:
        raise MetricError(f"false accept rates must be numbers, not {fars!r}") from error
    if not targets or not all(0 < far <= 1 for far in targets):
        raise MetricError(f"false accept rates must lie in (0, 1], not {targets}")
    return targets


def allowed_errors(rate: float, trials: int) -> int:
    """Return floor(rate * trials), where the rate is the decimal that it prints as.

    In binary floating point floor(0.0003 * 10000) is 2.
    """
    return int(Fraction(str(rate)) * trials)


def operating_point(
    far: float, threshold: float | np.floating, false_accepts: int, genuine: Floats, impostors: int
) -> OperatingPoint:
    """Return the operating point at a threshold.

    Args:
        far: The target.
        threshold: Scores above it are accepted.
        false_accepts: Impostor scores above the threshold.
        genuine: (G,) genuine scores.
        impostors: Number of impostor scores.
    """
    return OperatingPoint(
        far=far,
        tar=int(np.count_nonzero(genuine > threshold)) / len(genuine),
        threshold=float(threshold),
        false_accepts=false_accepts,
        achieved_far=false_accepts / impostors,
        genuine=len(genuine),
        impostors=impostors,
        supported=allowed_errors(far, impostors) >= RULE_OF_30,
    )


def _crossing(curve: Det) -> tuple[int, float]:
    """Return where FMR first reaches FNMR, and how far back towards the point before both meet."""
    gap = curve.fmr - curve.fnmr  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    return after, float(gap[after] / (gap[after] - gap[after - 1]))


def _order_statistics(scores: Floats, ranks: set[int]) -> dict[int, tuple[np.floating, int]]:
    """Return for each rank k the (k + 1)-th largest score and how many are above it.

    If there are only k scores, minus infinity and k. Each rank is looked for among the scores that
    the next higher rank left, so that all of them cost little more than the highest.
    """
    found = {}
    for k in sorted(ranks, reverse=True):
        if k == len(scores):
            found[k] = scores.dtype.type(-np.inf), k
        else:
            scores = _largest(scores, k + 1)
            found[k] = scores[0], int(np.count_nonzero(scores > scores[0]))
    return found


def _largest(scores: Floats, count: int) -> Floats:
    """Return the `count` largest scores, the lowest of them first."""
    # What is surely too low according to a sample need not be partitioned. If the sample misleads,
    # too few are left, and all are partitioned.
    sample = scores[::_STRIDE]
    floor = len(sample) - int(1.2 * count / _STRIDE) - 20
    if floor > 0:
        # Twice as fast as indexing by a mask.
        candidates = np.compress(scores > np.partition(sample, floor)[floor], scores)
        if len(candidates) >= count:
            scores = candidates
    start = len(scores) - count
    return np.partition(scores, start)[start:]


def _count_above(ascending: Floats, thresholds: Floats) -> Integers:
    """Return how many scores are strictly above each threshold."""
    return len(ascending) - np.searchsorted(ascending, thresholds, side="right")


def _as_truth(same: Numbers, count: int) -> Booleans:
    truth = to_numpy(same)
    if truth.shape != (count,):
        raise MetricError(f"same must hold {count} labels; its shape is {truth.shape}")
    if not np.isin(truth, (0, 1)).all():
        raise MetricError("same must hold booleans, or 0 for two people and 1 for one person")
    return truth.astype(np.bool_)


def _best_splits(values: Doubles, truth: Booleans, fold: Integers, folds: int) -> Doubles:
    """Return for each fold the threshold that separates the pairs of all other folds best."""
    order = np.argsort(values)
    values, truth, fold = values[order], truth[order], fold[order]
    return np.array([_best_split(values[fold != f], truth[fold != f]) for f in range(folds)])


def _best_split(ascending: Doubles, truth: Booleans) -> float:
    """Return the strictest of the thresholds with the most correct decisions."""
    count = len(ascending)
    # Entry c: correct decisions if the c lowest are rejected, up to a constant.
    correct = np.append(0, np.cumsum(np.where(truth, -1, 1)))
    correct[1:count][ascending[1:] == ascending[:-1]] = -count - 1  # equal scores stay together
    rejected = count - int(np.argmax(correct[::-1]))
    if rejected == 0:
        return float(np.nextafter(ascending[0], -np.inf))
    highest_rejected = ascending[rejected - 1]
    if rejected == count:
        return float(highest_rejected)
    lowest_accepted = ascending[rejected]
    middle = highest_rejected + (lowest_accepted - highest_rejected) / 2
    return float(middle if middle < lowest_accepted else highest_rejected)


def _squared_distances(cosines: Doubles) -> Doubles:
    if np.abs(cosines).max() > 1 + 1e-4:
        raise MetricError(
            "mode='insightface' needs cosines in [-1, 1]: its grid is over squared distances"
        )
    return np.maximum(2 - 2 * cosines, 0)


def _best_grid_thresholds(
    distances: Doubles, truth: Booleans, fold: Integers, folds: int
) -> Doubles:
    """Return for each fold the first grid threshold with the most correct decisions elsewhere."""
    grid = np.arange(0, 4, 0.01)
    # A pair is accepted from its bin on: by the first threshold above its distance and all later.
    bins = np.searchsorted(grid, distances, side="right")
    gains = np.zeros((folds, len(grid) + 1), dtype=np.int64)
    np.add.at(gains, (fold, bins), np.where(truth, 1, -1))
    correct = np.cumsum(gains[:, : len(grid)], axis=1)  # up to a constant per fold
    best: Integers = np.argmax(correct.sum(axis=0) - correct, axis=1)
    return grid[best]
