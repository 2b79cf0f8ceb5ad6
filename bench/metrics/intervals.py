"""Intervals that respect identities, and the tests that compare two systems.

Several images of one person, and all pairs that share a person, say less than as many independent
trials: the binomial interval that ignores this covers far less than it claims (27 % instead of
95 % for a false match rate over 60 people with 3 images each). Rates therefore get a Wilson
interval with the effective sample size that the variance between identities implies (Fogliato,
Patil and Perona, IJCV 2024), means get Student's t over identities, and statistics without a
formula are bootstrapped over identities.

A rate or mean over several runs of an attack varies with the run as well: what one training found,
all people share. Given `seeds`, the variances between identities and between seeds add up, with
the degrees of freedom of Welch and Satterthwaite. The sum is what resampling identities and seeds
on two levels estimates (Owen's pigeonhole bootstrap, 2007), without resampling.

All intervals are two-sided, all arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import special

from bench.errors import MetricError
from bench.metrics.arrays import (
    Doubles,
    Integers,
    Numbers,
    as_floats,
    as_indices,
    as_labels,
    as_scores,
)
from bench.metrics.unlinkability import LinkGains
from bench.metrics.verification import PairErrors, allowed_errors, as_fars

Statistic: TypeAlias = Callable[[Integers], float]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: The point estimate, in the unit of the metric.
        low: Lower end of the interval; at most `value`.
        high: Upper end; at least `value`.
        n: Trials behind the value: probes or pairs (identities for a bootstrap).
        clusters: Independent units behind the interval: identities, or the trials themselves.
        method: How the interval was made, for a footnote.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int
    method: str


@dataclass(frozen=True)
class NonInferiority:
    """Whether a candidate is worse than a baseline by less than a margin.

    Attributes:
        holds: The whole one-sided interval of the difference lies on the good side of the margin.
            "Not significantly different" is no reason for it to hold.
        difference: Candidate minus baseline, with the two-sided interval whose relevant end is the
            one-sided bound.
        bound: That end.
        margin: The largest tolerated loss, positive.
    """

    holds: bool
    difference: Estimate
    bound: float
    margin: float


def without_interval(value: float, n: int) -> Estimate:
    """Return a number that no interval is known for."""
    return Estimate(float(value), math.nan, math.nan, n, 0, "none")


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Return a rate of independent trials with Wilson's score interval.

    Raises:
        MetricError: Not 0 <= successes <= n with n > 0, or a confidence outside (0, 1).
    """
    _check_counts(successes, n)
    low, high = _wilson(successes / n, n, _normal(confidence))
    return Estimate(successes / n, low, high, n, n, "Wilson")


def clopper_pearson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Return a rate of independent trials with the exact interval of Clopper and Pearson.

    Raises:
        MetricError: Not 0 <= successes <= n with n > 0, or a confidence outside (0, 1).
    """
    _check_counts(successes, n)
    tail = _tail(confidence)
    low = special.betaincinv(successes, n - successes + 1, tail) if successes else 0.0
    high = special.betaincinv(successes + 1, n - successes, 1 - tail) if successes < n else 1.0
    return Estimate(successes / n, float(low), float(high), n, n, "Clopper-Pearson")


def clustered_rate(
    hits: Numbers, identities: Numbers, *, seeds: Numbers | None = None, confidence: float = 0.95
) -> Estimate:
    """Return a rate over probes of which several may show one identity.

    Wilson's interval with n_eff = p (1 - p) / V, V the cluster-robust variance of the mean, at most
    one trial per probe, and Student's t for the quantile. Identities not in the sample may all be
    unlike those in it, so no interval is narrower, towards 0 or 1, than the one that as many
    identities without a single exception leave open.

    Args:
        hits: (probes,) 0 or 1, or a share in [0, 1] where a probe is tried several times.
        identities: (probes,) integers or strings.
        seeds: (probes,) run of the attack behind each probe, integers or strings, if the interval
            is to hold for other runs too. One seed says nothing about others.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        MetricError: Wrong shapes, hits outside [0, 1], or a confidence outside (0, 1).
    """
    values = _rates(hits, "hits")
    groups, clusters = _groups(identities, "identities", len(values))
    rate = float(values.mean())
    parts = [(_mean_variance(values, groups), clusters), *_between_seeds(values, seeds)]
    variance, quantile = _total(parts, confidence)
    low, high = _robust_wilson(rate, variance, len(values), clusters, quantile)
    if clusters > 1:
        exception = _none_of(clusters, confidence)
        low, high = min(low, 1 - exception), max(high, exception)
    return Estimate(rate, low, high, len(values), clusters, f"Wilson, {_clustered_by(seeds)}")


def clustered_mean(
    values: Numbers, identities: Numbers, *, seeds: Numbers | None = None, confidence: float = 0.95
) -> Estimate:
    """Return a mean over probes (SSIM, PSNR, cosine, ...) of which several may show one identity.

    Student's t, with one degree of freedom less than there are identities, on the cluster-robust
    standard error of the mean. One identity alone leaves the interval infinite.

    An infinite value (PSNR of an identical image) makes the mean and the upper end infinite; the
    lower end is then that of the same values with the largest finite one in place of the infinite.

    Args:
        values: (probes,) real numbers, not NaN; +inf is allowed.
        identities: (probes,) integers or strings.
        seeds: (probes,) as in `clustered_rate`.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        MetricError: Wrong shapes, NaN or -inf, or a confidence outside (0, 1).
    """
    numbers = as_floats(values, "values", 1).astype(np.float64)
    if np.isnan(numbers).any() or np.isneginf(numbers).any():
        raise MetricError("values holds NaN or -inf; leave out or repair those probes")
    groups, clusters = _groups(identities, "identities", len(numbers))
    finite = np.isfinite(numbers)
    mean = float(numbers.mean())
    if not finite.any():
        low = high = mean
    else:
        numbers[~finite] = numbers[finite].max()
        parts = [(_mean_variance(numbers, groups), clusters), *_between_seeds(numbers, seeds)]
        error = _half_width(parts, confidence)
        low = float(numbers.mean()) - error
        high = mean + error
    return Estimate(mean, low, high, len(numbers), clusters, f"t, {_clustered_by(seeds)}")


def pair_rate(
    hits: Numbers,
    left_identities: Numbers,
    right_identities: Numbers,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Return a rate over pairs of images, where pairs that share an identity are dependent.

    Wilson's interval with n_eff = p (1 - p) / V, V the dyadic cluster-robust variance: products of
    residuals are summed over all pairs of pairs with an identity in common. Genuine pairs (left and
    right identity equal) are allowed. Without a hit, or without a miss, n_eff is the number of
    identities.

    Args:
        hits: (pairs,) 0 or 1, or a share in [0, 1].
        left_identities: (pairs,) identity of the first image, integers or strings.
        right_identities: (pairs,) identity of the second image.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        MetricError: Wrong shapes, hits outside [0, 1], or a confidence outside (0, 1).
    """
    values = _rates(hits, "hits")
    left, right, clusters = _pair_groups(left_identities, right_identities, len(values))
    rate = float(values.mean())
    variance = _dyadic_mean_variance(values, left, right, clusters)
    quantile = _student(confidence, clusters - 1)
    low, high = _robust_wilson(rate, variance, len(values), clusters, quantile)
    return Estimate(rate, low, high, len(values), clusters, "Wilson, dyadic by identity")


def equal_error_rate(
    errors: PairErrors,
    left_identities: Numbers,
    right_identities: Numbers,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Return the EER of pairs of images, where pairs that share an identity are dependent.

    As `pair_rate`, pairs weighted, so that the uncertainty of the threshold is part of the
    interval. Only identities with a genuine pair count as trials: of them alone FNMR speaks. No
    interval is narrower, towards 0 or 1, than the one that as many identities without a single
    exception leave open; perfect separation of few people is no certainty.

    Of simulated intervals at 95 % (normal scores, effects of identities, 300 sets each) 96 to 99 %
    contained an EER of .01, and 94 to 99 % one of .05 to .3; 90 % one of .2 where 20 people differ
    as impostors as much as pairs do. With the percentiles of `vertex_bootstrap` it was 72 to 79 %
    at .01 where all pairs of 15 to 60 people count. For 300 listed pairs that hardly share an
    identity, percentiles are 1.4 times as far apart as the ends here: the product of two resampled
    weights varies three times as much as one.

    Args:
        errors: What `equal_errors` returns.
        left_identities: (pairs,) identity of the first image, integers or strings.
        right_identities: (pairs,) identity of the second image, that of the first in genuine pairs.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        MetricError: Wrong shapes, no genuine pair, or a confidence outside (0, 1).
    """
    count = len(errors.wrong)
    left, right, clusters = _pair_groups(left_identities, right_identities, count)
    people = len(np.unique(left[left == right]))
    if not people:
        raise MetricError("There is no genuine pair: name one identity on both sides of some.")
    rate, weights = errors.rate, errors.weights
    variance = _dyadic_sum_variance(weights * (errors.wrong - rate), left, right, clusters)
    quantile = _student(confidence, people - 1)
    low, high = _robust_wilson(rate, variance, 1 / float(weights @ weights), people, quantile)
    if people > 1:
        exception = _none_of(people, confidence)
        low, high = min(low, 1 - exception), max(high, exception)
    method = "Wilson, dyadic by identity, of the linearised EER"
    return Estimate(rate, low, high, count, people, method)


def global_linkability(
    gains: LinkGains,
    mated_identities: Numbers,
    left_identities: Numbers,
    right_identities: Numbers,
    *,
    null_mean: float,
    confidence: float = 0.95,
) -> Estimate:
    """Return D_sys with an interval that respects identities and the bias of small samples.

    Student's t, on a standard error that is dyadic by identity. D_sys is too high in small samples:
    by no more than what chance gives, if scores of one identity are independent. So much is taken
    off the lower end. Only identities with a mated pair count as units. No interval is narrower,
    towards 0 or 1, than the one that as many identities without a single exception leave open.

    Of simulated intervals at 95 % (normal scores, with and without effects of identities, true
    D_sys 0 to .86, 100 to 150 sets each) 94 to 100 % contained the truth for 15 to 400 people, and
    89 to 99 % for 6. The percentiles of a bootstrap over identities never contained a D_sys of 0;
    corrected by the mean of the bootstrap, or by the jackknife, they did in 60 to 87 %.

    Args:
        gains: What `link_gains` returns.
        mated_identities: (n,) whom both records of a mated pair show, integers or strings.
        left_identities: (m,) whom the first record of a non-mated pair shows.
        right_identities: (m,) whom the second shows.
        null_mean: As in `Unlinkability`.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        MetricError: Wrong shapes, or a confidence outside (0, 1).
    """
    own = as_labels(mated_identities, "mated_identities", len(gains.mated))
    sides = (left_identities, right_identities)
    first, second = (as_labels(side, "identities", len(gains.non_mated)) for side in sides)
    pairs = np.concatenate((own, first)), np.concatenate((own, second))
    left, right, clusters = _pair_groups(*pairs, len(own) + len(first))
    residuals = np.concatenate([(x - x.mean()) / len(x) for x in (gains.mated, gains.non_mated)])
    people = len(np.unique(own))
    variance = max(_dyadic_sum_variance(residuals, left, right, clusters), 0.0)
    error = _half_width([(variance, people)], confidence)
    value = gains.d_sys
    low, high = value - null_mean - error, value + error
    if people > 1:
        exception = _none_of(people, confidence)
        low, high = min(low, 1 - exception), max(high, exception)
    method = "t, dyadic by identity, less the bias"
    return Estimate(value, max(low, 0.0), min(high, 1.0), len(own), people, method)


def dyadic_variance(left: Numbers, right: Numbers, images: Numbers) -> float:
    """Return the variance of a false match rate over all impostor pairs, from its matches alone.

    The sum over pairs of pairs with an identity in common, rearranged so that its cost grows with
    the false matches and the identities, not with the pairs.

    Args:
        left: (matches,) identity index, in 0..K-1, of one image of each falsely matched pair.
        right: (matches,) identity index of the other image; never that of the first.
        images: (K,) number of images of each identity.

    Raises:
        MetricError: Indices outside 0..K-1, a match within one identity, fewer than two identities.
    """
    first, second, counts = _false_matches(left, right, images)
    total = _impostor_pairs(counts)
    rate = len(first) / total
    identities = len(counts)
    matches = np.bincount(first, minlength=identities) + np.bincount(second, minlength=identities)
    excess = matches - rate * counts * (counts.sum() - counts)
    keys, index = _dyads(first, second, identities)
    per_dyad = np.bincount(index)
    trials = counts[keys // identities] * counts[keys % identities]
    squares = counts**2
    all_dyads = (squares.sum() ** 2 - squares @ squares) / 2
    shared_twice = per_dyad @ (per_dyad - 2 * rate * trials) + rate**2 * all_dyads
    return float((excess @ excess - shared_twice) / total**2)


def false_match_rate(
    left: Numbers, right: Numbers, images: Numbers, *, confidence: float = 0.95
) -> Estimate:
    """Return the false match rate over all impostor pairs, from its matches alone.

    Wilson's interval with n_eff = p (1 - p) / V, V from `dyadic_variance`. Without a false match
    n_eff is the number of identities.

    Args:
        left: (matches,) as in `dyadic_variance`.
        right: (matches,) as in `dyadic_variance`.
        images: (K,) as in `dyadic_variance`.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        MetricError: As `dyadic_variance`, or a confidence outside (0, 1).
    """
    first, _, counts = _false_matches(left, right, images)
    total = _impostor_pairs(counts)
    clusters = len(counts)
    rate = len(first) / total
    variance = dyadic_variance(left, right, images) * clusters / (clusters - 1)
    quantile = _student(confidence, clusters - 1)
    low, high = _robust_wilson(rate, variance, total, clusters, quantile)
    return Estimate(rate, low, high, total, clusters, "Wilson, dyadic by identity")


def vertex_bootstrap(
    statistic: Statistic,
    identities: int,
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Return a statistic of pairs with the percentile interval of the subject bootstrap.

    Identities are drawn with replacement; a pair counts as often as the product of how often its
    two identities were drawn.

    Args:
        statistic: Function of (K,) integer weights, such as from `fmr_statistic` or
            `tar_statistic`; its value with all weights 1 is the estimate.
        identities: K.
        replicates: Number of resamples.
        confidence: Nominal coverage, in (0, 1).
        seed: Of the resamples.

    Raises:
        MetricError: Fewer than two identities, no resample, a statistic that is undefined in one; a
            confidence outside (0, 1).
    """
    tail = _tail(confidence)
    if identities < 2 or replicates < 1:
        raise MetricError(
            f"{replicates} resamples of {identities} identities give no interval: give 1 and 2, or "
            "more."
        )
    generator = np.random.default_rng(seed)
    chances = np.full(identities, 1 / identities)
    draws = [statistic(generator.multinomial(identities, chances)) for _ in range(replicates)]
    value = statistic(np.ones(identities, np.int64))
    if not np.isfinite([value, *draws]).all():
        raise MetricError(f"The statistic is undefined in a resample of {identities} identities.")
    low, high = np.quantile(draws, (tail, 1 - tail))
    method = f"subject bootstrap, {replicates} resamples"
    return Estimate(
        value, min(float(low), value), max(float(high), value), identities, identities, method
    )


def fmr_statistic(left: Numbers, right: Numbers, images: Numbers) -> Statistic:
    """Return the false match rate as a function of identity weights, for `vertex_bootstrap`.

    Args:
        left: (matches,) as in `dyadic_variance`.
        right: (matches,) as in `dyadic_variance`.
        images: (K,) as in `dyadic_variance`.

    Raises:
        MetricError: As `dyadic_variance`.
    """
    first, second, counts = _false_matches(left, right, images)

    def statistic(weights: Integers) -> float:
        total = _impostor_pairs(weights * counts)
        return float(weights[first] @ weights[second] / total) if total else math.nan

    return statistic


def tar_statistic(
    genuine: Numbers,
    genuine_identities: Numbers,
    impostor: Numbers,
    left: Numbers,
    right: Numbers,
    images: Numbers,
    *,
    far: float,
) -> Statistic:
    """Return TAR at a FAR as a function of identity weights, for `vertex_bootstrap`.

    The threshold is found anew under each weighting, so its uncertainty is part of the interval.
    Only the largest impostor scores are needed: with some six times floor(far * impostor pairs) of
    them every resample is exact, and a resample that needs more raises an error.

    Args:
        genuine: (G,) scores of genuine pairs.
        genuine_identities: (G,) identity index of each, in 0..K-1.
        impostor: (L,) the L largest scores of all impostor pairs, in any order.
        left: (L,) identity index of one image of each.
        right: (L,) identity index of the other image.
        images: (K,) number of images of each identity.
        far: The false accept rate, in (0, 1].

    Raises:
        MetricError: Wrong shapes, scores that are not finite, indices outside 0..K-1.
    """
    (target,) = as_fars(far)
    first, second, counts = _false_matches(left, right, images)
    scores = as_scores(impostor, "impostor")
    positives = as_scores(genuine, "genuine")
    owners = as_indices(genuine_identities, "genuine_identities", len(counts))
    if len(owners) != len(positives) or len(first) != len(scores):
        raise MetricError("Scores and identities of the pairs differ in number: pair them first.")
    complete = len(scores) == _impostor_pairs(counts)
    order = np.argsort(-scores, kind="stable")
    scores, first, second = scores[order], first[order], second[order]

    def statistic(weights: Integers) -> float:
        allowed = allowed_errors(target, _impostor_pairs(weights * counts))
        accepted = np.cumsum(weights[first] * weights[second])
        deciding = int(np.searchsorted(accepted, allowed, side="right"))
        if deciding == len(scores) and not complete:
            raise MetricError(
                f"The {len(scores)} largest impostor scores do not reach FAR {target:g} in a "
                f"resample: give more of them."
            )
        threshold = scores[deciding] if deciding < len(scores) else -np.inf
        drawn = weights[owners]
        return float(drawn[positives > threshold].sum() / drawn.sum()) if drawn.any() else math.nan

    return statistic


def paired_difference(
    a: Numbers,
    b: Numbers,
    identities: Numbers,
    *,
    seeds: Numbers | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Return the difference of two rates measured on the same probes, a minus b.

    Student's t over identities on the differences and two added probes, one won by each side: the
    adjustment of Bonett and Price (2012), without which agreement on every probe would claim an
    interval of no width. For means of unbounded values take `clustered_mean(a - b, identities)`.

    Args:
        a: (probes,) 0 or 1, or a share in [0, 1].
        b: (probes,) the same probes under the other system.
        identities: (probes,) integers or strings.
        seeds: (probes,) as in `clustered_rate`: the run of both systems behind each probe.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        MetricError: Wrong shapes, values outside [0, 1], or a confidence outside (0, 1).
    """
    difference, parts, clusters = _paired(a, b, identities, seeds)
    method = f"paired t, {_clustered_by(seeds)}"
    return _difference_estimate(difference, _half_width(parts, confidence), clusters, method)


def paired_p_value(
    a: Numbers, b: Numbers, identities: Numbers, *, seeds: Numbers | None = None
) -> float:
    """Return the two-sided p-value of two equal rates on the same probes.

    By the t of `paired_difference`: at a level above it the interval leaves out 0.

    Args:
        a: (probes,) as in `paired_difference`.
        b: (probes,) as in `paired_difference`.
        identities: (probes,) as in `paired_difference`.
        seeds: (probes,) as in `paired_difference`.

    Raises:
        MetricError: As `paired_difference`.
    """
    difference, parts, _ = _paired(a, b, identities, seeds)
    variance, freedom = _sum(parts)
    if freedom <= 0:
        return 1.0
    centre = float(_with_two_added(difference).mean())
    return 2 * float(special.stdtr(freedom, -abs(centre) / math.sqrt(variance)))


def pair_difference(
    a: Numbers,
    b: Numbers,
    left_identities: Numbers,
    right_identities: Numbers,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Return the difference of two rates measured on the same pairs of images, a minus b.

    As `paired_difference`, two added pairs included, with the variance of `pair_rate`.

    Args:
        a: (pairs,) 0 or 1, or a share in [0, 1].
        b: (pairs,) the same pairs under the other system.
        left_identities: (pairs,) as in `pair_rate`.
        right_identities: (pairs,) as in `pair_rate`.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        MetricError: Wrong shapes, values outside [0, 1], or a confidence outside (0, 1).
    """
    first, second = _rates(a, "a"), _rates(b, "b")
    if len(first) != len(second):
        raise MetricError(f"a and b hold {len(first)} and {len(second)} pairs: match them first.")
    left, right, clusters = _pair_groups(left_identities, right_identities, len(first))
    difference = first - second
    adjusted = _with_two_added(difference)
    added = clusters + np.arange(4).reshape(2, 2)
    variance = _dyadic_mean_variance(
        adjusted, np.append(left, added[0]), np.append(right, added[1]), clusters + 4
    )
    error = _half_width([(max(variance, 0.0), clusters)], confidence)
    return _difference_estimate(difference, error, clusters, "paired t, dyadic by identity")


def equal_error_difference(
    a: PairErrors,
    b: PairErrors,
    left_identities: Numbers,
    right_identities: Numbers,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Return the difference of two EERs on the same pairs of images, a minus b.

    As `pair_difference`, with the variance of `equal_error_rate`.

    Args:
        a: What `equal_errors` returns.
        b: The same pairs under the other system.
        left_identities: (pairs,) as in `equal_error_rate`.
        right_identities: (pairs,) as in `equal_error_rate`.
        confidence: Nominal coverage, in (0, 1).

    Raises:
        MetricError: As `equal_error_rate`.
    """
    count = len(a.wrong)
    if count != len(b.wrong):
        raise MetricError(f"a and b hold {count} and {len(b.wrong)} pairs: match them first.")
    left, right, clusters = _pair_groups(left_identities, right_identities, count)
    residuals = a.weights * (a.wrong - a.rate) - b.weights * (b.wrong - b.rate)
    variance = max(_dyadic_sum_variance(residuals, left, right, clusters), 0.0)
    trials = 1 / max(float(x.weights @ x.weights) for x in (a, b))
    difference = a.rate - b.rate
    # Two added pairs, one won by each side, as in `_with_two_added`.
    centre = difference * trials / (trials + 2)
    parts = [((variance * trials**2 + 2) / (trials + 2) ** 2, clusters)]
    error = _half_width(parts, confidence)
    low, high = min(centre - error, difference), max(centre + error, difference)
    method = "paired t, dyadic by identity, of the linearised EERs"
    return Estimate(difference, low, high, count, clusters, method)


def _with_two_added(difference: Doubles) -> Doubles:
    """Add a probe that each side wins."""
    return np.append(difference, (1.0, -1.0))


def _difference_estimate(difference: Doubles, error: float, clusters: int, method: str) -> Estimate:
    """Return the mean difference in an interval around that with two added probes."""
    value, centre = float(difference.mean()), float(_with_two_added(difference).mean())
    low, high = min(centre - error, value), max(centre + error, value)
    return Estimate(value, low, high, len(difference), clusters, method)


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Valid only for independent pairs, one per identity; else use `paired_difference`.

    Args:
        b: Pairs that only the first system decides correctly.
        c: Pairs that only the second system decides correctly.

    Raises:
        MetricError: A negative count.
    """
    if b < 0 or c < 0:
        raise MetricError(f"Counts must not be negative: {b}, {c}.")
    return min(1.0, 2 * float(special.bdtr(min(b, c), b + c, 0.5)))


def non_inferiority(
    candidate: Numbers,
    baseline: Numbers,
    identities: Numbers,
    *,
    margin: float,
    better: Literal["higher", "lower"] = "higher",
    seeds: Numbers | None = None,
    confidence: float = 0.95,
) -> NonInferiority:
    """Return whether a candidate's rate is worse than the baseline's by less than a margin.

    Args:
        candidate: (probes,) 0 or 1, or a share in [0, 1].
        baseline: (probes,) the same probes under the baseline.
        identities: (probes,) integers or strings.
        margin: The largest tolerated loss, in (0, 1).
        better: "higher" for a utility such as TAR, "lower" for an attack's success.
        seeds: (probes,) as in `paired_difference`.
        confidence: Of the one-sided bound, in (0.5, 1).

    Raises:
        MetricError: As `paired_difference`; a margin or confidence outside its range.
    """
    if better not in ("higher", "lower"):
        raise MetricError(f"better must be 'higher' or 'lower', not {better!r}.")
    if not 0 < margin < 1:
        raise MetricError(f"margin must lie in (0, 1), not {margin}.")
    difference = paired_difference(
        candidate, baseline, identities, seeds=seeds, confidence=2 * confidence - 1
    )
    if better == "higher":
        bound, holds = difference.low, difference.low > -margin
    else:
        bound, holds = difference.high, difference.high < margin
    return NonInferiority(holds, difference, bound, margin)


def _wilson(rate: float, n: float, quantile: float) -> tuple[float, float]:
    square = quantile**2 / n
    centre = (rate + square / 2) / (1 + square)
    half = math.sqrt(square * (rate * (1 - rate) + square / 4)) / (1 + square)
    # Rounding must not push the interval off a rate of 0 or 1.
    return max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate))


def _robust_wilson(
    rate: float, variance: float, n: float, clusters: int, quantile: float
) -> tuple[float, float]:
    """Return Wilson's interval at the sample size that the variance implies, at most n.

    Without a hit, or without a miss, the variance says nothing and identities are the trials. One
    identity, or one seed, says nothing about others: the quantile is infinite.
    """
    if math.isinf(quantile):
        return 0.0, 1.0
    spread = rate * (1 - rate)
    effective = max(variance, spread / n)
    return _wilson(rate, spread / effective if spread > 0 else clusters, quantile)


def _none_of(clusters: int, confidence: float) -> float:
    """Return the upper end of Wilson's interval for no success in as many trials as identities."""
    return _wilson(0.0, clusters, _student(confidence, clusters - 1))[1]


def _mean_variance(values: Doubles, groups: Integers) -> float:
    """Return the cluster-robust variance of the mean, with the small-sample factor K / (K - 1)."""
    residuals = np.bincount(groups, values - values.mean())
    factor = len(residuals) / max(len(residuals) - 1, 1)
    return float(factor * (residuals @ residuals)) / len(values) ** 2


def _dyadic_mean_variance(values: Doubles, left: Integers, right: Integers, clusters: int) -> float:
    """Return the dyadic cluster-robust variance of a mean over pairs; rounding may make it < 0."""
    return _dyadic_sum_variance(values - values.mean(), left, right, clusters) / len(values) ** 2


def _dyadic_sum_variance(
    residuals: Doubles, left: Integers, right: Integers, clusters: int
) -> float:
    """Return the dyadic cluster-robust variance of a sum over pairs; rounding may make it < 0."""
    others = left != right
    per_identity = np.bincount(left, residuals, clusters)
    per_identity += np.bincount(right[others], residuals[others], clusters)
    dyads = _dyads(left[others], right[others], clusters)[1]
    per_dyad = np.bincount(dyads, residuals[others])
    shared = float(per_identity @ per_identity - per_dyad @ per_dyad)
    return shared * clusters / max(clusters - 1, 1)


def _between_seeds(values: Doubles, seeds: Numbers | None) -> list[tuple[float, int]]:
    """Return the variance of the mean between seeds and their number, if there are seeds."""
    if seeds is None:
        return []
    groups, count = _groups(seeds, "seeds", len(values))
    return [(_mean_variance(values, groups), count)]


def _paired(
    a: Numbers, b: Numbers, identities: Numbers, seeds: Numbers | None
) -> tuple[Doubles, list[tuple[float, int]], int]:
    """Return differences, the variances behind their mean with two added, and identities."""
    first, second = _rates(a, "a"), _rates(b, "b")
    if len(first) != len(second):
        raise MetricError(f"a and b hold {len(first)} and {len(second)} probes: pair them first.")
    groups, clusters = _groups(identities, "identities", len(first))
    difference = first - second
    added = np.append(groups, (clusters, clusters + 1))
    variance = _mean_variance(_with_two_added(difference), added)
    return difference, [(variance, clusters), *_between_seeds(difference, seeds)], clusters


def _sum(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return the sum of variances, each with its number of units, and its degrees of freedom.

    They are those of Welch and Satterthwaite.
    """
    total = sum(variance for variance, _ in parts)
    fewest = min(units for _, units in parts) - 1
    if len(parts) == 1 or fewest == 0 or total == 0:
        return total, fewest
    return total, total**2 / sum(variance**2 / (units - 1) for variance, units in parts)


def _total(parts: Sequence[tuple[float, int]], confidence: float) -> tuple[float, float]:
    """Return the sum of variances and Student's quantile for it."""
    total, freedom = _sum(parts)
    return total, _student(confidence, freedom)


def _half_width(parts: Sequence[tuple[float, int]], confidence: float) -> float:
    """Return half the width of the t interval of a mean; infinite for one identity or seed."""
    variance, quantile = _total(parts, confidence)
    return quantile * math.sqrt(variance) if math.isfinite(quantile) else quantile


def _clustered_by(seeds: Numbers | None) -> str:
    return "clustered by identity" + ("" if seeds is None else " and seed")


def _dyads(left: Integers, right: Integers, identities: int) -> tuple[Integers, Integers]:
    """Return the distinct unordered pairs of identities, as numbers, and the pair of each entry."""
    keys = np.minimum(left, right) * identities + np.maximum(left, right)
    distinct, index = np.unique(keys, return_inverse=True)
    return distinct, index


def _false_matches(
    left: Numbers, right: Numbers, images: Numbers
) -> tuple[Integers, Integers, Integers]:
    counts = as_indices(images, "images", np.iinfo(np.int64).max)
    first = as_indices(left, "left", len(counts))
    second = as_indices(right, "right", len(counts))
    if len(first) != len(second) or (first == second).any():
        raise MetricError("left and right must name two different identities for every pair.")
    if np.count_nonzero(counts) < 2:
        raise MetricError("Impostor pairs need images of at least two identities.")
    return first, second, counts


def _impostor_pairs(counts: Integers) -> int:
    return (int(counts.sum()) ** 2 - int(counts @ counts)) // 2


def _pair_groups(
    left_identities: Numbers, right_identities: Numbers, count: int
) -> tuple[Integers, Integers, int]:
    """Return the identity index of both images of each pair, and the number of identities."""
    both = np.concatenate(
        (
            as_labels(left_identities, "left_identities", count),
            as_labels(right_identities, "right_identities", count),
        )
    )
    groups, clusters = _groups(both, "identities", 2 * count)
    return groups[:count], groups[count:], clusters


def _groups(units: Numbers, name: str, count: int) -> tuple[Integers, int]:
    labels = as_labels(units, name, count)
    distinct, groups = np.unique(labels, return_inverse=True)
    return groups, len(distinct)


def _rates(values: Numbers, name: str) -> Doubles:
    rates = as_scores(values, name).astype(np.float64)
    if rates.min() < 0 or rates.max() > 1:
        raise MetricError(f"{name} must lie in [0, 1], not {rates.min():g} to {rates.max():g}.")
    return rates


def _check_counts(successes: int, n: int) -> None:
    whole = all(isinstance(count, (int, np.integer)) for count in (successes, n))
    if not (whole and n > 0 and 0 <= successes <= n):
        raise MetricError(
            f"{successes} of {n} trials is no rate: give integers, 0 <= successes <= n, n > 0."
        )


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise MetricError(f"confidence must lie in (0, 1), not {confidence}.")
    return (1 - confidence) / 2


def _normal(confidence: float) -> float:
    return float(special.ndtri(1 - _tail(confidence)))


def _student(confidence: float, freedom: float) -> float:
    """Return the quantile of Student's t; infinite without a degree of freedom."""
    probability = 1 - _tail(confidence)
    return float(special.stdtrit(freedom, probability)) if freedom > 0 else math.inf
