"""Unlinkability of protected records (ISO/IEC 30136): can two databases be joined?

Mated scores compare two records of one identity protected with different secrets, non-mated scores
records of different identities, also with different secrets. The score must be the best linkage
function known, which need not be the system's own comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import MetricError
from bench.metrics.arrays import as_scores

if TYPE_CHECKING:
    from bench.metrics.arrays import Booleans, Doubles, Integers, Numbers


@dataclass(frozen=True)
class Unlinkability:
    """How well two records of one identity can be told from records of two identities.

    Attributes:
        d_sys: Global linkability in [0, 1]; 0 is unlinkable. Biased upwards in finite samples.
        null_mean: Mean of D_sys over random relabellings of the scores: what no linkability at
            all would give at this sample size.
        null_p95: 95th percentile of the same.
        excess: d_sys - null_mean.
        maximal_linkability: log2 of the sum over bins of the larger probability, in [0, 1] bits;
            every linker obeys TMR <= FMR + 2^value - 1. It carries the same bias.
        auc: Probability that a mated score exceeds a non-mated one, ties counted half. Free of
            bins.
        n_mated: Number of mated scores.
        n_non_mated: Number of non-mated scores.
        bins: Number of bins behind d_sys and maximal_linkability.
    """

    d_sys: float
    null_mean: float
    null_p95: float
    excess: float
    maximal_linkability: float
    auc: float
    n_mated: int
    n_non_mated: int
    bins: int


@dataclass(frozen=True)
class LinkGains:
    """What each score contributes to D_sys, which is the sum of both means.

    With h = P(mated | bin) at prior ratio 1, a mated score gains 1 - 2 (1 - h)^2 where h > 1/2, and
    a non-mated one loses 2 h^2: the derivative of D_sys by the probability of the score's bin.

    Attributes:
        mated: (n,) in [0, 1].
        non_mated: (m,) in [-2, 0].
    """

    mated: Doubles
    non_mated: Doubles

    @property
    def d_sys(self) -> float:
        """As in `Unlinkability`."""
        return float(self.mated.mean() + self.non_mated.mean())


def unlinkability(
    mated: Numbers,
    non_mated: Numbers,
    *,
    bins: int | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> Unlinkability:
    """Return D_sys with its permutation null, maximal linkability and AUC.

    D_sys is the sum over bins of D_k P(k | mated), with D_k = 2 r / (1 + r) - 1 where the
    likelihood ratio r = P(k | mated) / P(k | non-mated) exceeds 1, and 0 elsewhere (prior ratio 1).
    Bins hold equal mass of the balanced mixture of both distributions, so that neither an outlier
    nor unequal sample sizes blur them; equal scores share a bin.

    Args:
        mated: (n,) linkage scores of one identity under different secrets, higher is more alike.
        non_mated: (m,) linkage scores of different identities under different secrets.
        bins: Even number of bins; by default one per 100 scores of the smaller sample, within 10
            and 30. Results with different numbers of bins are not comparable.
        permutations: Number of random relabellings behind the null.
        seed: Of the relabellings.

    Raises:
        MetricError: Empty or non-finite scores; an odd number of bins; no permutation.

    References: Gomez-Barrero et al., "General framework to evaluate unlinkability in biometric
    template protection systems", IEEE TIFS 2018.
    """
    positives, negatives = as_scores(mated, "mated"), as_scores(non_mated, "non_mated")
    count = _bins(min(len(positives), len(negatives))) if bins is None else bins
    if count < 2 or count % 2:
        raise MetricError(f"bins must be an even number of at least 2, not {count}.")
    if permutations < 1:
        raise MetricError("permutations must be at least 1: D_sys means nothing without its null.")
    values, scores = np.unique(np.concatenate((positives, negatives)), return_inverse=True)
    is_mated = np.arange(len(scores)) < len(positives)
    p, q = _masses(scores, is_mated, len(values))
    binned = _binned(p, q, count)
    d_sys = _d_sys(*binned)
    generator = np.random.default_rng(seed)
    scores.sort()  # the null must not depend on the order of the input
    relabelled = (generator.permutation(is_mated) for _ in range(permutations))
    null = [_d_sys(*_binned(*_masses(scores, mine, len(values)), count)) for mine in relabelled]
    return Unlinkability(
        d_sys=d_sys,
        null_mean=float(np.mean(null)),
        null_p95=float(np.quantile(null, 0.95)),
        excess=d_sys - float(np.mean(null)),
        maximal_linkability=float(np.log2(np.maximum(*binned).sum())),
        auc=float(p @ (np.cumsum(q) - q / 2)),
        n_mated=len(positives),
        n_non_mated=len(negatives),
        bins=count,
    )


def link_gains(mated: Numbers, non_mated: Numbers) -> LinkGains:
    """Return what each score contributes to D_sys, from which `global_linkability` has an interval.

    Args:
        mated: (n,) as in `unlinkability`.
        non_mated: (m,) as in `unlinkability`.

    Raises:
        MetricError: Empty or non-finite scores.
    """
    positives, negatives = as_scores(mated, "mated"), as_scores(non_mated, "non_mated")
    count = _bins(min(len(positives), len(negatives)))
    values, scores = np.unique(np.concatenate((positives, negatives)), return_inverse=True)
    p, q = _masses(scores, np.arange(len(scores)) < len(positives), len(values))
    index = _bin_index(p, q, count)
    mine, other = _binned(p, q, count)
    linkable = mine > other
    h = mine[linkable] / (mine[linkable] + other[linkable])
    gain, loss = np.zeros((2, count))
    gain[linkable], loss[linkable] = 1 - 2 * (1 - h) ** 2, -2 * h**2
    bins = index[scores]
    return LinkGains(gain[bins[: len(positives)]], loss[bins[len(positives) :]])


def _bins(smaller: int) -> int:
    return min(30, max(10, smaller // 200 * 2))


def _masses(scores: Integers, is_mated: Booleans, values: int) -> tuple[Doubles, Doubles]:
    """Return the probability of each distinct score under both labels."""
    mated = np.bincount(scores[is_mated], minlength=values)
    non_mated = np.bincount(scores[~is_mated], minlength=values)
    return mated / mated.sum(), non_mated / non_mated.sum()


def _binned(p: Doubles, q: Doubles, bins: int) -> tuple[Doubles, Doubles]:
    """Gather the probabilities of ascending scores in bins of equal mass of their mixture."""
    index = _bin_index(p, q, bins)
    first = np.bincount(index, p, bins).astype(np.float64, copy=False)
    second = np.bincount(index, q, bins).astype(np.float64, copy=False)
    return first, second


def _bin_index(p: Doubles, q: Doubles, bins: int) -> Integers:
    """Return the bin of each ascending score.

    A score goes where the middle of its mass lies. With an even number of bins the border between
    two separated distributions is a border of bins.
    """
    mixture = (p + q) / 2
    middle = np.cumsum(mixture) - mixture / 2
    return np.minimum((bins * middle).astype(np.int64), bins - 1)


def _d_sys(p: Doubles, q: Doubles) -> float:
    """Return the sum of D_k p_k: D_k = (r - 1) / (r + 1) = (p_k - q_k) / (p_k + q_k)."""
    linkable = p > q
    p, q = p[linkable], q[linkable]
    return float(p @ ((p - q) / (p + q)))
