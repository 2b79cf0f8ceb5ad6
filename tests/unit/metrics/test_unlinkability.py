from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bench.errors import MetricError
from bench.metrics.unlinkability import link_gains, unlinkability

# Shifted Gaussians, from the integral of the definition: shift, D_sys, AUC.
GAUSSIANS = [
    (0.25, 0.057, 0.570),
    (0.5, 0.128, 0.638),
    (1, 0.294, 0.760),
    (2, 0.617, 0.921),
    (3, 0.835, 0.983),
]


@pytest.mark.parametrize(("shift", "d_sys", "auc"), GAUSSIANS)
@pytest.mark.parametrize("bins", [None, 10, 20])
def test_shifted_gaussians(shift: float, d_sys: float, auc: float, bins: int | None) -> None:
    rng = np.random.default_rng(1)
    result = unlinkability(
        rng.normal(shift, 1, 20_000), rng.normal(0, 1, 50_000), bins=bins, permutations=5
    )
    assert abs(result.d_sys - d_sys) <= 0.02
    assert abs(result.auc - auc) <= 0.01


def test_identical_distributions_stay_within_the_permutation_null() -> None:
    rng = np.random.default_rng(2)
    results = [
        unlinkability(rng.normal(size=500), rng.normal(size=3000), permutations=40)
        for _ in range(60)
    ]
    above = np.mean([result.d_sys > result.null_p95 for result in results])
    assert above <= 0.15  # nominal 0.05; 40 relabellings, 60 trials
    assert abs(np.mean([result.excess for result in results])) <= 0.003
    assert np.mean([result.d_sys for result in results]) > 0.01  # the bias that the null reveals


def test_separated_and_equal_scores() -> None:
    apart = unlinkability(np.full(40, 1.0), np.full(4000, 0.0), permutations=10)
    assert apart.d_sys == apart.auc == 1
    assert apart.maximal_linkability == pytest.approx(1)
    alike = unlinkability(np.ones(40), np.ones(4000), permutations=10)
    assert alike.d_sys == alike.maximal_linkability == alike.null_mean == 0
    assert alike.auc == 0.5
    # One outlier and a hundred times more non-mated scores hide nothing.
    rng = np.random.default_rng(3)
    far = unlinkability(
        rng.uniform(0.9, 1, 500), np.append(rng.uniform(0, 0.8, 50_000), -1e6), permutations=2
    )
    assert far.d_sys == pytest.approx(1)


def test_auc_and_bound_on_linkers() -> None:
    rng = np.random.default_rng(4)
    mated, non_mated = rng.integers(0, 12, 800) + 3, rng.integers(0, 12, 3000)
    result = unlinkability(mated, non_mated, bins=30, permutations=2)
    labels = np.repeat((1, 0), (800, 3000))
    assert result.auc == pytest.approx(roc_auc_score(labels, np.append(mated, non_mated)))
    gain = 2**result.maximal_linkability - 1
    for threshold in range(16):
        assert (mated > threshold).mean() <= (non_mated > threshold).mean() + gain + 1e-12


def test_gains_add_up_to_d_sys_and_are_its_derivative() -> None:
    rng = np.random.default_rng(6)
    mated, non_mated = rng.normal(1, 1, 2000), rng.normal(0, 1, 6000)
    gains = link_gains(mated, non_mated)
    whole = unlinkability(mated, non_mated, bins=20, permutations=1).d_sys
    assert gains.d_sys == pytest.approx(whole, abs=1e-12)
    assert 0 <= gains.mated.min() <= gains.mated.max() <= 1
    assert -2 <= gains.non_mated.min() <= gains.non_mated.max() <= 0
    # One in a hundred mated scores more at the top: the mixture moves by 1 % of their gain.
    more = unlinkability(np.append(mated, np.full(20, 9.0)), non_mated, bins=20, permutations=1)
    top = gains.mated.max() - gains.mated.mean()
    assert more.d_sys - whole == pytest.approx(0.01 * top, rel=0.2)


def test_the_result_carries_its_sizes_and_repeats() -> None:
    rng = np.random.default_rng(5)
    mated, non_mated = rng.normal(1, 1, 2150), rng.normal(0, 1, 9000)
    first = unlinkability(mated, non_mated, permutations=20, seed=3)
    assert (first.n_mated, first.n_non_mated, first.bins) == (2150, 9000, 20)
    assert first.excess == first.d_sys - first.null_mean
    assert first == unlinkability(mated[::-1], non_mated, permutations=20, seed=3)
    assert first.null_mean != unlinkability(mated, non_mated, permutations=20, seed=4).null_mean


def test_bad_input_is_refused() -> None:
    scores = np.arange(20.0)
    with pytest.raises(MetricError, match="NaN"):
        unlinkability(scores, [np.nan])
    with pytest.raises(MetricError, match="non-empty"):
        unlinkability([], scores)
    with pytest.raises(MetricError, match="even number"):
        unlinkability(scores, scores, bins=11)
    with pytest.raises(MetricError, match="at least 1"):
        unlinkability(scores, scores, permutations=0)
