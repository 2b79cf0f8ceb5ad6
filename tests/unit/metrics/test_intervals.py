from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from scipy import stats

from bench.errors import MetricError
from bench.metrics.intervals import (
    Estimate,
    clopper_pearson,
    clustered_mean,
    clustered_rate,
    dyadic_variance,
    equal_error_difference,
    equal_error_rate,
    false_match_rate,
    fmr_statistic,
    global_linkability,
    mcnemar,
    non_inferiority,
    pair_difference,
    pair_rate,
    paired_difference,
    tar_statistic,
    vertex_bootstrap,
    wilson,
)
from bench.metrics.unlinkability import link_gains, unlinkability
from bench.metrics.verification import equal_errors, tar_at_far

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

# --- independent trials -------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 3000), (5, 1000), (7, 7), (15, 15_638_932)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_binomial_intervals_agree_with_scipy(k: int, n: int, confidence: float) -> None:
    result = stats.binomtest(k, n)
    method: Literal["wilson", "exact"]
    for function, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        estimate = function(k, n, confidence=confidence)
        expected = result.proportion_ci(confidence, method)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), rel=1e-7, abs=1e-15)
        assert estimate.low <= estimate.value == k / n <= estimate.high
        assert estimate.n == estimate.clusters == n


def test_the_published_examples() -> None:
    assert clopper_pearson(3, 3000).low == pytest.approx(2.1e-4, rel=0.03)
    assert clopper_pearson(3, 3000).high == pytest.approx(2.9e-3, rel=0.03)
    assert clopper_pearson(0, 3000).high == pytest.approx(1.2e-3, rel=0.03)
    assert clopper_pearson(15, 15_638_932).high == pytest.approx(1.58e-6, rel=0.01)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 6), (3, 11), (40, 40), (900, 1100)])
def test_mcnemar_agrees_with_scipy(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)


# --- several probes per identity ----------------------------------------------------------------


def clustered(
    rng: np.random.Generator, rate: float = 0.3, spread: float = 1.5
) -> tuple[NDArray[np.float64], Integers]:
    """Return hits of 60 identities with 3 probes, whose rates differ strongly."""
    identities = np.repeat(np.arange(60), 3)
    threshold = stats.norm.ppf(rate) * (1 + spread**2) ** 0.5
    chance = stats.norm.cdf(threshold + spread * rng.normal(size=60))
    return (rng.random(180) < chance[identities]).astype(float), identities


def test_clustered_rate_is_wilson_at_the_effective_sample_size() -> None:
    hits, identities = clustered(np.random.default_rng(0))
    estimate = clustered_rate(hits, identities)
    p = hits.mean()
    totals = np.array([(hits[identities == i] - p).sum() for i in range(60)])
    variance = 60 / 59 * (totals**2).sum() / 180**2
    n_eff, t = p * (1 - p) / variance, stats.t.ppf(0.975, 59)
    centre = (p + t**2 / (2 * n_eff)) / (1 + t**2 / n_eff)
    half = t * (p * (1 - p) / n_eff + t**2 / (4 * n_eff**2)) ** 0.5 / (1 + t**2 / n_eff)
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half))
    assert (estimate.n, estimate.clusters) == (180, 60)
    assert 60 < n_eff < 180


def test_clustered_rate_of_one_probe_per_identity_is_nearly_wilson() -> None:
    hits = np.arange(1000) < 400
    estimate, plain = clustered_rate(hits, np.arange(1000)), wilson(400, 1000)
    assert (estimate.low, estimate.high) == pytest.approx((plain.low, plain.high), abs=2e-4)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_rate_without_exception_is_bounded_by_the_identities(rate: float) -> None:
    many, few = (
        clustered_rate(np.full(6000, rate), np.arange(6000) % identities)
        for identities in (6000, 60)
    )
    assert few.high - few.low == pytest.approx(4 / 64, abs=0.002)  # t² / (60 + t²), not of 6000
    assert many.high - many.low == pytest.approx(3.84 / 6004, abs=1e-5)
    one = clustered_rate(np.full(50, rate), np.zeros(50, int))
    assert (one.low, one.high) == (0, 1)


def test_a_hit_more_never_lowers_the_upper_end() -> None:
    identities = np.repeat(np.arange(60), 3)
    highs = [clustered_rate(np.arange(180) % 60 < k, identities).high for k in range(30)]
    assert (np.diff(highs) >= 0).all()


def test_clustered_rate_takes_shares_and_names() -> None:
    names = np.array(["ann", "bob", "cy"]).repeat(4)
    estimate = clustered_rate(np.linspace(0, 1, 12), names)
    assert estimate.value == pytest.approx(0.5)
    assert estimate.low < 0.5 < estimate.high


def test_clustered_mean_of_independent_values_is_students_t() -> None:
    values = np.random.default_rng(1).normal(20, 5, 40)
    estimate = clustered_mean(values, np.arange(40))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_clustered_mean_sees_repeated_values_as_one() -> None:
    values = np.random.default_rng(2).normal(size=30)
    once = clustered_mean(values, np.arange(30))
    tenfold = clustered_mean(values.repeat(10), np.arange(30).repeat(10))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_infinite_values_make_the_mean_infinite_but_keep_the_lower_end() -> None:
    values, identities = np.array([30.0, 40.0, np.inf, 35.0]), np.arange(4)
    estimate = clustered_mean(values, identities)
    capped = clustered_mean(np.minimum(values, 40), identities)
    assert estimate.value == estimate.high == np.inf
    assert estimate.low == capped.low
    alike = clustered_mean(np.full(4, np.inf), identities)
    assert alike.value == alike.low == alike.high == np.inf
    assert values[2] == np.inf  # the caller's array is untouched


def test_one_identity_leaves_a_mean_open() -> None:
    estimate = clustered_mean([1.0, 2.0], [7, 7])
    assert (estimate.low, estimate.value, estimate.high) == (-np.inf, 1.5, np.inf)


# --- several seeds ------------------------------------------------------------------------------


def crossed(
    rng: np.random.Generator, identities: int, seeds: int, seed_spread: float
) -> tuple[NDArray[np.float64], Integers, Integers]:
    """Return one value, of mean 0, for each identity under each seed."""
    identity, seed = np.divmod(np.arange(identities * seeds), seeds)
    values = rng.normal(size=identities)[identity] + seed_spread * rng.normal(size=seeds)[seed]
    return values + 0.3 * rng.normal(size=len(values)), identity, seed


def test_the_variance_over_seeds_is_that_of_the_two_level_bootstrap() -> None:
    rng = np.random.default_rng(14)
    values, identity, seed = crossed(rng, 40, 5, 0.4)
    table = values.reshape(40, 5)
    # One draw less than there are units makes the variance of a mean unbiased (Rao and Wu, 1988).
    people = rng.multinomial(39, np.full(40, 1 / 40), 20_000) / 39
    runs = rng.multinomial(4, np.full(5, 1 / 5), 20_000) / 4
    resampled = np.einsum("ri,ij,rj->r", people, table, runs).var()
    parts = [5 * ((table.mean(1) - table.mean()) ** 2).sum() / (39 * 40 * 5)]
    parts.append(((table.mean(0) - table.mean()) ** 2).sum() / (4 * 5))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 39 + parts[1] ** 2 / 4)
    estimate = clustered_mean(values, identity, seeds=seed)
    half = (estimate.high - estimate.low) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5)
    assert sum(parts) == pytest.approx(resampled, rel=0.05)
    assert estimate.method == "t, clustered by identity and seed"


def test_seeds_that_do_not_matter_hardly_widen_an_interval() -> None:
    hits, identities = clustered(np.random.default_rng(15))
    runs = np.tile(np.arange(10), 18)
    alone, both = clustered_rate(hits, identities), clustered_rate(hits, identities, seeds=runs)
    ratio = (both.high - both.low) / (alone.high - alone.low)
    assert 1 < ratio < 1.3


def test_one_seed_says_nothing_about_others() -> None:
    hits, identities = clustered(np.random.default_rng(16))
    same = np.zeros(180, int)
    rate = clustered_rate(hits, identities, seeds=same)
    assert (rate.low, rate.high) == (0, 1)
    assert clustered_mean(hits, identities, seeds=same).high == np.inf
    assert paired_difference(hits, hits, identities, seeds=same).low == -np.inf


def test_coverage_over_people_and_seeds() -> None:
    """Five seeds of an attack: by identity alone an interval covers 75 %, not 95 %."""
    rng = np.random.default_rng(17)
    covered = np.zeros(4)
    for _ in range(300):
        values, identity, seed = crossed(rng, 60, 5, 0.4)
        hits = (values > 0).astype(float)
        lost = (values < -1).astype(float)
        rate = stats.norm.cdf(-1 / (1 + 0.4**2 + 0.3**2) ** 0.5)
        covered += (
            covers(lambda: clustered_mean(values, identity), 0),  # noqa: B023
            covers(lambda: clustered_mean(values, identity, seeds=seed), 0),  # noqa: B023
            covers(lambda: clustered_rate(hits, identity, seeds=seed), 0.5),  # noqa: B023
            covers(
                lambda: paired_difference(1 - lost, np.ones(300), identity, seeds=seed),  # noqa: B023
                -rate,
            ),
        )
    one_level, *two_levels = covered / 300
    assert one_level < 0.8
    assert min(two_levels) >= 0.88


# --- pairs that share identities ----------------------------------------------------------------


def matches(rng: np.random.Generator, identities: int = 12) -> tuple[Integers, Integers, Integers]:
    """Return random false matches, some of them between the same identities."""
    images = rng.integers(1, 6, identities)
    left = rng.integers(0, identities - 1, 25)
    right = rng.integers(left + 1, identities)
    flip = rng.random(25) < 0.5
    return np.where(flip, right, left), np.where(flip, left, right), images


def test_dyadic_variance_equals_the_loop_over_pairs_of_dyads() -> None:
    for seed in range(5):
        left, right, images = matches(np.random.default_rng(seed))
        total = (images.sum() ** 2 - (images**2).sum()) / 2
        rate = len(left) / total
        found = np.zeros((12, 12))
        np.add.at(found, (np.minimum(left, right), np.maximum(left, right)), 1)
        dyads = list(combinations(range(12), 2))
        excess = {(i, j): found[i, j] - rate * images[i] * images[j] for i, j in dyads}
        loop = sum(excess[d] * excess[e] for d in dyads for e in dyads if set(d) & set(e))
        assert dyadic_variance(left, right, images) == pytest.approx(loop / total**2, rel=1e-9)


def pairs_of(
    left: Integers, right: Integers, images: Integers
) -> tuple[NDArray[np.bool_], Integers, Integers]:
    """Return every impostor pair, with a hit for each false match."""
    owner = np.repeat(np.arange(len(images)), images)
    first, second = np.triu_indices(len(owner), 1)
    first, second = owner[first], owner[second]
    impostor = first != second
    first, second = first[impostor], second[impostor]
    hits = np.zeros(len(first), bool)
    for i, j in zip(np.minimum(left, right), np.maximum(left, right), strict=True):
        free = (first == i) & (second == j) & ~hits
        hits[np.flatnonzero(free)[0]] = True
    return hits, first, second


def test_pair_rate_over_all_pairs_equals_the_sparse_form() -> None:
    images = np.array([4, 5, 3, 6, 4])
    left, right = np.array([0, 1, 1, 3, 4, 3, 0]), np.array([1, 0, 2, 1, 3, 4, 3])
    sparse, full = false_match_rate(left, right, images), pair_rate(*pairs_of(left, right, images))
    assert (sparse.value, sparse.low, sparse.high) == pytest.approx(
        (full.value, full.low, full.high)
    )
    assert (sparse.n, sparse.clusters) == (full.n, full.clusters) == (191, 5)


def test_pair_rate_with_genuine_pairs_equals_the_loop() -> None:
    rng = np.random.default_rng(5)
    left, right = rng.integers(0, 15, (2, 90))
    hits = (rng.random(90) < 0.3 + 0.5 * (left < 4)).astype(float)
    residuals = hits - hits.mean()
    loop = sum(
        residuals[p] * residuals[q]
        for p in range(90)
        for q in range(90)
        if {left[p], right[p]} & {left[q], right[q]}
    )
    variance = loop / 90**2 * 15 / 14
    p, t = hits.mean(), stats.t.ppf(0.975, 14)
    ratio = t**2 * variance / (p * (1 - p))
    half = (ratio * (p * (1 - p) + ratio / 4)) ** 0.5 / (1 + ratio)
    estimate = pair_rate(hits, left, right)
    assert estimate.high - estimate.low == pytest.approx(2 * half)


def test_pair_rate_of_disjoint_genuine_pairs_is_a_clustered_rate() -> None:
    hits, identities = clustered(np.random.default_rng(6))
    by_pair, by_probe = pair_rate(hits, identities, identities), clustered_rate(hits, identities)
    assert (by_pair.low, by_pair.high) == pytest.approx((by_probe.low, by_probe.high))


def test_no_false_match_is_bounded_by_the_identities() -> None:
    none = np.array([], dtype=np.int64)
    estimate = false_match_rate(none, none, np.full(1000, 10))
    assert (estimate.value, estimate.low) == (0, 0)
    assert estimate.high == pytest.approx(3.84 / 1004, rel=0.01)
    pairs = pair_rate(np.zeros(45), *np.triu_indices(10, 1))
    assert pairs.high > 0.3


# --- equal error rate ---------------------------------------------------------------------------


def all_pairs_of(
    rng: np.random.Generator, people: int, each: int, rate: float, spread: float = 1.0
) -> tuple[NDArray[np.float64], Integers, Integers]:
    """Return scores of all pairs, normal with effects of identities, at a true EER."""
    owner = np.repeat(np.arange(people), each)
    left, right = (owner[side] for side in np.triu_indices(people * each, 1))
    same = left == right
    shift = -stats.norm.ppf(rate) * ((1 + spread**2) ** 0.5 + 1.5**0.5)
    among, between = spread * rng.normal(size=people), 0.5 * rng.normal(size=people)
    effects = np.where(same, shift + among[left], between[left] + between[right])
    return rng.normal(size=len(left)) + effects, left, right


def test_the_interval_of_an_eer_equals_the_loop() -> None:
    scores, left, right = all_pairs_of(np.random.default_rng(18), 8, 4, 0.3)
    errors = equal_errors(scores, left == right)
    moved = errors.weights * (errors.wrong - errors.rate)
    shared = [{a, b} for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    pairs = range(len(scores))
    loop = sum(moved[p] * moved[q] for p in pairs for q in pairs if shared[p] & shared[q])
    rate, t = errors.rate, stats.t.ppf(0.975, 7)
    ratio = t**2 * loop * 8 / 7 / (rate * (1 - rate))
    half = (ratio * (rate * (1 - rate) + ratio / 4)) ** 0.5 / (1 + ratio)
    estimate = equal_error_rate(errors, left, right)
    assert estimate.high - estimate.low == pytest.approx(2 * half)
    assert (estimate.value, estimate.n, estimate.clusters) == (rate, len(scores), 8)


def test_perfect_separation_of_few_people_is_no_certainty() -> None:
    _, left, right = all_pairs_of(np.random.default_rng(19), 20, 5, 0.1)
    same = left == right
    for scores, value in ((same, 0.0), (~same, 1.0)):
        found = equal_error_rate(equal_errors(scores.astype(float), same), left, right)
        assert found.value == pytest.approx(value)
        assert found.high - found.low == pytest.approx(4.381 / 24.381, abs=1e-3)  # t² / (K + t²)
    # One error more must not narrow it.
    one = np.where(np.arange(len(left)) == 0, 0.0, same)
    assert equal_error_rate(equal_errors(one, same), left, right).high >= 4.38 / 24.39
    alone = equal_error_rate(equal_errors([1.0, 0.0], [1, 0]), [0, 0], [0, 1])
    assert (alone.low, alone.high) == (0, 1)


@pytest.mark.parametrize(("people", "each", "rate"), [(20, 5, 0.05), (60, 3, 0.1)])
def test_coverage_of_equal_error_rates(people: int, each: int, rate: float) -> None:
    rng = np.random.default_rng(20)
    covered = np.zeros(2)
    for _ in range(100):
        scores, left, right = all_pairs_of(rng, people, each, rate)
        errors = equal_errors(scores, left == right)
        wrong = round(errors.rate * len(scores))
        covered += (
            covers(lambda: wilson(wrong, len(scores)), rate),  # noqa: B023
            covers(lambda: equal_error_rate(errors, left, right), rate),  # noqa: B023
        )
    naive, robust = covered / 100
    assert naive < 0.85
    assert robust >= 0.9


def test_a_difference_of_eers() -> None:
    rng = np.random.default_rng(21)
    scores, left, right = all_pairs_of(rng, 30, 4, 0.1)
    a = equal_errors(scores, left == right)
    b = equal_errors(scores + 0.5 * rng.normal(size=len(scores)), left == right)
    found, swapped = (equal_error_difference(*two, left, right) for two in ((a, b), (b, a)))
    assert found.value == pytest.approx(a.rate - b.rate)
    assert (found.low, found.high) == pytest.approx((-swapped.high, -swapped.low))
    # The pairing removes what both systems find easy or hard.
    apart = equal_error_rate(a, left, right)
    assert found.high - found.low < apart.high - apart.low
    alike = equal_error_difference(a, a, left, right)
    assert alike.low < 0 < alike.high


# --- linkability --------------------------------------------------------------------------------


def linked(
    rng: np.random.Generator, people: int, each: int, shift: float
) -> tuple[Estimate, float]:
    """Return D_sys of all ordered pairs, with effects of identities, and what chance gives."""
    owner = np.repeat(np.arange(people), each)
    left, right = (owner[side] for side in np.nonzero(~np.eye(len(owner), dtype=bool)))
    mated = left == right
    effects = np.where(mated, shift + 0.5 * rng.normal(size=people)[left], 0)
    # One variance for both kinds: shifted normal scores.
    scores = effects + np.where(mated, 0.75**0.5, 1) * rng.normal(size=len(left))
    null = unlinkability(scores[mated], scores[~mated], permutations=5).null_mean
    gains = link_gains(scores[mated], scores[~mated])
    sides = left[mated], left[~mated], right[~mated]
    return global_linkability(gains, *sides, null_mean=null), null


@pytest.mark.parametrize(("shift", "truth"), [(0, 0), (2, 0.617)])
def test_coverage_of_global_linkability(shift: float, truth: float) -> None:
    rng = np.random.default_rng(22)
    found = [linked(rng, 40, 3, shift)[0] for _ in range(40)]
    assert np.mean([estimate.low <= truth <= estimate.high for estimate in found]) >= 0.9
    if truth == 0:  # an interval as wide to both sides leaves out what D_sys is biased by
        assert np.mean([2 * estimate.value - estimate.high <= truth for estimate in found]) < 0.8


def test_the_interval_of_linkability_by_hand() -> None:
    rng = np.random.default_rng(23)
    found, null = linked(rng, 30, 4, 1)
    assert (found.n, found.clusters) == (360, 30)
    # What is left of the lower half once the bias is taken off is the upper half.
    assert found.value - null - found.low == pytest.approx(found.high - found.value)


def test_people_who_are_all_linked_leave_others_open() -> None:
    mated, left, right = np.arange(20), *np.nonzero(~np.eye(20, dtype=bool))
    gains = link_gains(np.ones(20), np.zeros(len(left)))
    found = global_linkability(gains, mated, left, right, null_mean=0.0)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - 4.381 / 24.381, abs=1e-3)  # t² / (K + t²)
    alike = link_gains(np.ones(20), np.ones(len(left)))
    none = global_linkability(alike, mated, left, right, null_mean=0.0)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - found.low)
    one = link_gains(np.ones(2), np.zeros(3))
    alone = global_linkability(one, [0, 0], [0, 1, 2], [1, 2, 3], null_mean=0.0)
    assert (alone.low, alone.high) == (0, 1)


# --- subject bootstrap --------------------------------------------------------------------------


def test_weighted_false_match_rate_equals_the_rate_of_copied_identities() -> None:
    rng = np.random.default_rng(7)
    left, right, images = matches(rng)
    weights = rng.integers(0, 3, 12)
    hits, first, second = pairs_of(left, right, images)
    weight = weights[first] * weights[second]
    statistic = fmr_statistic(left, right, images)
    assert statistic(weights) == pytest.approx((weight * hits).sum() / weight.sum())
    assert statistic(np.ones(12, np.int64)) == pytest.approx(hits.mean())


@pytest.mark.parametrize("decimals", [1, 6])  # 1: many ties
def test_the_candidate_list_gives_the_full_recomputation(decimals: int) -> None:
    rng = np.random.default_rng(8)
    identities, each, far = 40, 4, 0.01
    images = np.full(identities, each)
    owner = np.repeat(np.arange(identities), each)
    first, second = np.triu_indices(identities * each, 1)
    scores = np.round(
        rng.normal(size=identities)[owner[first]] + rng.normal(size=len(first)), decimals
    )
    same = owner[first] == owner[second]
    genuine, genuine_owner = scores[same] + 2, owner[first][same]
    impostor, left, right = scores[~same], owner[first][~same], owner[second][~same]
    keep = np.argsort(-impostor)[: 6 * int(far * len(impostor))]
    statistic = tar_statistic(
        genuine, genuine_owner, impostor[keep], left[keep], right[keep], images, far=far
    )
    for _ in range(20):
        weights = rng.multinomial(identities, np.full(identities, 1 / identities))
        (full,) = tar_at_far(
            genuine.repeat(weights[genuine_owner]),
            impostor.repeat(weights[left] * weights[right]),
            [far],
        )
        assert statistic(weights) == pytest.approx(full.tar, abs=1e-12)
    estimate = vertex_bootstrap(statistic, identities, replicates=100)
    assert estimate.low < estimate.value < estimate.high


def test_a_candidate_list_that_is_too_short_says_so() -> None:
    images = np.full(10, 2)
    scores, left, right = np.arange(5.0), np.arange(5), np.arange(5) + 1
    genuine = np.arange(10.0)
    statistic = tar_statistic(genuine, np.arange(10), scores, left, right, images, far=0.1)
    with pytest.raises(MetricError, match=r"5 largest impostor scores do not reach FAR 0\.1"):
        vertex_bootstrap(statistic, 10)


def test_all_impostors_may_pass_when_all_are_listed() -> None:
    left, right = np.triu_indices(6, 1)
    statistic = tar_statistic(
        np.arange(6.0), np.arange(6), np.arange(15.0), left, right, np.ones(6, np.int64), far=1
    )
    assert statistic(np.ones(6, np.int64)) == 1


def test_the_bootstrap_repeats_and_refuses_undefined_resamples() -> None:
    left, right, images = matches(np.random.default_rng(9))
    statistic = fmr_statistic(left, right, images)
    first = vertex_bootstrap(statistic, 12, replicates=200, seed=1)
    assert first == vertex_bootstrap(statistic, 12, replicates=200, seed=1)
    assert first != vertex_bootstrap(statistic, 12, replicates=200, seed=2)
    with pytest.raises(MetricError, match="undefined in a resample of 2"):
        vertex_bootstrap(fmr_statistic([0], [1], [3, 3]), 2)


# --- two systems --------------------------------------------------------------------------------


def test_paired_difference() -> None:
    rng = np.random.default_rng(10)
    a, identities = clustered(rng)
    b = np.where(rng.random(180) < 0.1, 1 - a, a)
    estimate, swapped = paired_difference(a, b, identities), paired_difference(b, a, identities)
    assert estimate.value == pytest.approx((a - b).mean())
    assert (swapped.low, swapped.high) == pytest.approx((-estimate.high, -estimate.low))
    # The pairing removes what both systems find easy or hard.
    apart = clustered_rate(a, identities)
    assert estimate.high - estimate.low < apart.high - apart.low
    plain = clustered_mean(a - b, identities)
    assert estimate.high - estimate.low == pytest.approx(plain.high - plain.low, rel=0.15)


def test_agreement_on_every_probe_is_no_certainty() -> None:
    hits = np.ones(400)
    estimate = paired_difference(hits, hits, np.arange(400) % 40)
    assert estimate.low == -estimate.high
    assert 3 / 400 / 2 < estimate.high < 2 * 3 / 400  # about the rule of three


def test_one_identity_says_nothing_about_a_difference() -> None:
    estimate = paired_difference(np.ones(50), np.ones(50), np.zeros(50, int))
    assert (estimate.low, estimate.value, estimate.high) == (-np.inf, 0, np.inf)


def test_non_inferiority_needs_evidence() -> None:
    identities = np.arange(2000)
    baseline = np.ones(2000)
    candidate = (identities >= 20).astype(float)  # one point lost
    assert non_inferiority(candidate, baseline, identities, margin=0.02).holds
    assert not non_inferiority(candidate, baseline, identities, margin=0.01).holds
    few = slice(0, 2000, 100)  # no loss among 20 probes beyond one: not enough to tell
    assert not non_inferiority(baseline[few], baseline[few], identities[few], margin=0.02).holds
    gate = non_inferiority(candidate, baseline, identities, margin=0.02)
    one_sided = paired_difference(candidate, baseline, identities, confidence=0.9)
    assert gate.bound == one_sided.low
    # An attack that succeeds less often is no loss; one that succeeds more often is.
    assert non_inferiority(candidate, baseline, identities, margin=0.001, better="lower").holds
    assert not non_inferiority(baseline, candidate, identities, margin=0.01, better="lower").holds


# --- coverage, nominal 95 %, 60 identities with 3 images and strong identity effects ------------


def covers(interval: Callable[[], Estimate], truth: float) -> bool:
    estimate = interval()
    return estimate.low <= truth <= estimate.high


def test_coverage_of_false_match_rates() -> None:
    """Naive Wilson covers a third of what it claims; dyadic Wilson and the bootstrap hold."""
    rng = np.random.default_rng(11)
    identities, trials, spread, level = 60, 200, 0.5, -2.0
    images = np.full(identities, 3)
    first, second = np.triu_indices(identities, 1)
    truth = stats.norm.cdf(level / (1 + 2 * spread**2) ** 0.5)
    covered = np.zeros(3)
    for _ in range(trials):
        ease = spread * rng.normal(size=identities)
        found = rng.binomial(9, stats.norm.cdf(level + ease[first] + ease[second]))
        left, right = first.repeat(found), second.repeat(found)
        bootstrap = vertex_bootstrap(fmr_statistic(left, right, images), identities, replicates=200)
        covered += (
            covers(lambda: wilson(len(left), 9 * len(first)), truth),  # noqa: B023
            covers(lambda: false_match_rate(left, right, images), truth),  # noqa: B023
            covers(lambda: bootstrap, truth),  # noqa: B023
        )
    naive, dyadic, vertex = covered / trials
    assert naive < 0.5
    assert dyadic >= 0.88
    assert vertex >= 0.88


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_coverage_of_clustered_rates(rate: float) -> None:
    rng = np.random.default_rng(12)
    covered = np.zeros(2)
    for _ in range(400):
        hits, identities = clustered(rng, rate, spread=3)
        covered += (
            covers(lambda: wilson(int(hits.sum()), 180), rate),  # noqa: B023
            covers(lambda: clustered_rate(hits, identities), rate),  # noqa: B023
        )
    naive, robust = covered / 400
    assert naive < 0.85
    assert robust >= 0.9


def test_coverage_of_paired_differences() -> None:
    rng = np.random.default_rng(13)
    identities = np.repeat(np.arange(60), 3)
    covered = np.zeros(2)
    for _ in range(400):
        chance = rng.beta(0.2, 3.8, 60)  # probes lost: 5 % on average, clumped
        lost = (rng.random(180) < chance[identities]).astype(float)
        covered += (
            covers(lambda: clustered_mean(-lost, identities), -0.05),  # noqa: B023
            covers(lambda: paired_difference(1 - lost, np.ones(180), identities), -0.05),  # noqa: B023
        )
    plain, adjusted = covered / 400
    assert adjusted > plain
    assert adjusted >= 0.88


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), "3 of 2"),
        (lambda: clopper_pearson(0, 0), "0 of 0"),
        (lambda: wilson(1.5, 2), "give integers"),  # type: ignore[arg-type]
        (lambda: wilson(1, 2, confidence=95), "confidence"),
        (lambda: vertex_bootstrap(lambda _: 1.0, 1), "1000 resamples of 1 identities"),
        (lambda: vertex_bootstrap(lambda _: 1.0, 9, replicates=0), "0 resamples"),
        (lambda: clustered_rate([0, 2], [0, 1]), r"\[0, 1\]"),
        (lambda: clustered_rate([0, 1], [0, 1, 2]), "identities must hold 2"),
        (lambda: clustered_rate([0, 1], [0, 1], seeds=[0]), "seeds must hold 2"),
        (lambda: clustered_rate([0, np.nan], [0, 1]), "NaN"),
        (lambda: clustered_rate([], []), "non-empty"),
        (lambda: clustered_mean([0, np.nan], [0, 1]), "NaN"),
        (lambda: clustered_mean([0, -np.inf], [0, 1]), "-inf"),
        (lambda: pair_rate([0, 1], [0, 1], [0]), "right_identities must hold 2"),
        (lambda: paired_difference([0, 1], [0], [0, 1]), "2 and 1 probes"),
        (
            lambda: equal_error_rate(equal_errors([1.0, 0.0], [1, 0]), [0, 0], [1, 1]),
            "no genuine pair",
        ),
        (
            lambda: equal_error_difference(
                equal_errors([1.0, 0.0], [1, 0]), equal_errors([1.0, 0.0, 0], [1, 0, 0]), [0], [1]
            ),
            "2 and 3 pairs",
        ),
        (lambda: mcnemar(-1, 2), "negative"),
        (lambda: dyadic_variance([0], [0], [2, 2]), "two different identities"),
        (lambda: dyadic_variance([0], [2], [2, 2]), "outside 0..1"),
        (lambda: dyadic_variance([0], [1], [2, 0]), "at least two identities"),
        (lambda: non_inferiority([1], [1], [0], margin=0), "margin"),
        (lambda: non_inferiority([1], [1], [0], margin=0.1, better="more"), "better"),  # type: ignore[arg-type]
        (lambda: non_inferiority([1], [1], [0], margin=0.1, confidence=0.5), "confidence"),
        (
            lambda: tar_statistic([1.0], [0, 1], [1.0], [0], [1], [2, 2], far=0.1),
            "differ in number",
        ),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        call()


def test_a_difference_of_pairs_knows_who_is_on_them() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 1500)) < 0.8).astype(float)
    apart = pair_difference(a, b, np.arange(1500), 1500 + np.arange(1500))
    alone = paired_difference(a, b, np.arange(1500))
    assert apart.value == pytest.approx(alone.value)
    assert apart.high - apart.low == pytest.approx(alone.high - alone.low, rel=0.01)
    # Everybody's pairs go the same way: 30 people say less than 1500 pairs.
    person = np.repeat(np.arange(30), 50)
    biased = (rng.random(30) < 0.5)[person].astype(float)
    shared = pair_difference(biased, 1 - biased, person, (person + 1 + np.arange(1500) % 29) % 30)
    assert shared.high - shared.low > 4 * (apart.high - apart.low)


def test_pairs_that_agree_claim_no_interval_without_width() -> None:
    same = np.ones(100)
    found = pair_difference(same, same, np.arange(100), 100 + np.arange(100))
    assert (found.value, found.n) == (0, 100)
    assert found.low < 0 < found.high
