from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.errors import MetricError
from bench.metrics.verification import (
    auc,
    det,
    eer,
    equal_errors,
    roc,
    tar_at_far,
    threshold_at_fmr,
    verification_accuracy,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.metrics.arrays import Booleans, Doubles, Integers

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

scores = hnp.arrays(
    np.float64, st.integers(1, 60), elements=st.integers(-8, 8).map(lambda n: n / 8)
)
rates = st.integers(1, 1000).map(lambda n: n / 1000)


def by_full_sort(
    genuine: Doubles | Sequence[float], impostor: Doubles, far: float
) -> tuple[float, int, float]:
    """The frozen definition, word for word."""
    k = int(Fraction(str(far)) * len(impostor))
    descending = sorted(impostor, reverse=True)
    tau = descending[k] if k < len(descending) else -np.inf
    return tau, sum(s > tau for s in impostor), sum(s > tau for s in genuine) / len(genuine)


class TestTarAtFar:
    @pytest.mark.parametrize("decimals", [1, 2, 8])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_equals_the_full_sort_with_and_without_ties(
        self, decimals: int, dtype: type[np.floating]
    ) -> None:
        rng = np.random.default_rng(0)
        impostor = rng.normal(0, 0.1, 20_000).round(decimals).astype(dtype)
        genuine = rng.normal(0.4, 0.2, 500).round(decimals).astype(dtype)
        for point in tar_at_far(genuine, impostor, FARS):
            tau, false_accepts, tar = by_full_sort(genuine, impostor, point.far)
            assert (point.threshold, point.false_accepts, point.tar) == (tau, false_accepts, tar)
            assert point.achieved_far == false_accepts / 20_000 <= point.far
            assert (point.genuine, point.impostors) == (500, 20_000)

    @settings(deadline=None)
    @given(scores, scores, rates)
    def test_equals_the_full_sort(self, genuine: Doubles, impostor: Doubles, far: float) -> None:
        (point,) = tar_at_far(genuine, impostor, [far])
        expected = by_full_sort(genuine, impostor, far)
        assert (point.threshold, point.false_accepts, point.tar) == expected

    @pytest.mark.parametrize("order", ["random", "ascending", "descending", "misleading"])
    def test_long_lists_in_any_order(self, order: str) -> None:
        impostor = np.random.default_rng(0).normal(size=50_000)
        if order != "random":
            impostor.sort()
        if order == "descending":
            impostor = impostor[::-1]
        if order == "misleading":
            impostor[::251] = 9
        for point in tar_at_far([0.0, 2.0], impostor, (0.5, *FARS)):
            expected = by_full_sort([0.0, 2.0], impostor, point.far)
            assert (point.threshold, point.false_accepts, point.tar) == expected

    @settings(deadline=None)
    @given(scores, scores, st.lists(rates, min_size=2, max_size=5))
    def test_grows_with_the_target_and_never_overshoots(
        self, genuine: Doubles, impostor: Doubles, fars: list[float]
    ) -> None:
        points = tar_at_far(genuine, impostor, sorted(fars))
        assert all(point.false_accepts <= point.far * len(impostor) + 1e-9 for point in points)
        assert all(a.tar <= b.tar and a.threshold >= b.threshold for a, b in pairwise(points))

    @settings(deadline=None)
    @given(scores, scores, rates)
    def test_depends_on_the_order_of_the_scores_alone(
        self, genuine: Doubles, impostor: Doubles, far: float
    ) -> None:
        (plain,) = tar_at_far(genuine, impostor, far)
        (warped,) = tar_at_far(np.exp(genuine), np.exp(impostor), far)
        assert (plain.tar, plain.false_accepts) == (warped.tar, warped.false_accepts)

    def test_counts_in_decimal_arithmetic(self) -> None:
        impostor = np.arange(10_000.0)
        assert int(0.0003 * 10_000) == 2
        assert tar_at_far([0.0], impostor, 0.0003)[0].false_accepts == 3

    def test_rule_of_30(self) -> None:
        supported = [p.supported for p in tar_at_far([1.0], np.arange(30_000.0), FARS)]
        assert supported == [True, True, True, False, False, False]

    def test_far_one_accepts_everything(self) -> None:
        (point,) = tar_at_far([0.0, 1.0], [0.5, 0.5], 1)
        assert (point.tar, point.false_accepts, point.threshold) == (1.0, 2, -np.inf)

    def test_two_precisions_keep_ties_on_the_reject_side(self) -> None:
        tie = np.float32(0.1)
        for genuine, impostor in [([tie], [np.float64(tie)]), ([np.float64(tie)], [tie])]:
            (point,) = tar_at_far(np.array(genuine), np.array(impostor), 0.5)
            assert point.tar == 0

    def test_accepts_tensors_lists_and_decimals(self) -> None:
        genuine = torch.tensor([0.5, 0.9], requires_grad=True)
        # More than the signature promises: a Decimal, like a float, is what it prints as.
        assert tar_at_far(genuine, [0.6, 0.1], Decimal("0.5"))[0].tar == 1  # type: ignore[arg-type]
        half = torch.tensor([0.5, 0.875], dtype=torch.bfloat16)
        assert tar_at_far(half, [0.6], 0.5)[0].tar == 0.5

    @pytest.mark.parametrize(
        ("genuine", "impostor", "far", "message"),
        [
            ([], [0.1], 0.1, "genuine must be a non-empty"),
            ([0.1], [], 0.1, "impostor must be a non-empty"),
            ([0.1], [[0.1]], 0.1, "1 axes"),
            ([np.nan], [0.1], 0.1, "genuine holds NaN"),
            ([0.1], [0.1, np.inf], 0.1, "impostor holds NaN or infinite"),
            (["a"], [0.1], 0.1, "real numbers"),
            ([0.1], [0.1], 0.0, r"\(0, 1\]"),
            ([0.1], [0.1], 1.1, r"\(0, 1\]"),
            ([0.1], [0.1], float("nan"), r"\(0, 1\]"),
            ([0.1], [0.1], [], r"\(0, 1\]"),
            ([0.1], [0.1], None, "must be numbers"),
            ([0.1], [0.1], ["1%"], "must be numbers"),
        ],
    )
    def test_bad_input_is_named(self, genuine: Any, impostor: Any, far: Any, message: str) -> None:
        with pytest.raises(MetricError, match=message):
            tar_at_far(genuine, impostor, far)

    @settings(deadline=None)
    @given(scores, rates)
    def test_threshold_at_fmr_is_the_same_threshold(self, impostor: Doubles, fmr: float) -> None:
        assert threshold_at_fmr(impostor, fmr) == tar_at_far([0.0], impostor, fmr)[0].threshold


def insightface_reference(
    distances: Doubles, same: Booleans, folds: Integers
) -> tuple[Doubles, Doubles]:
    """deepinsight's calculate_accuracy and calculate_roc, written out with explicit folds."""
    thresholds = np.arange(0, 4, 0.01)
    accuracies, chosen = [], []
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        by_threshold = [np.mean((distances[train] < t) == same[train]) for t in thresholds]
        best = thresholds[np.argmax(by_threshold)]
        chosen.append(best)
        accuracies.append(np.mean((distances[test] < best) == same[test]))
    return np.array(accuracies), np.array(chosen)


def pairs(seed: int, count: int = 600, shift: float = 0.3) -> tuple[Doubles, Booleans, Integers]:
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.5
    cosines = np.clip(rng.normal(shift * same, 0.15), -1, 1)
    return cosines, same, rng.integers(0, 10, count)


class TestVerificationAccuracy:
    @pytest.mark.parametrize("seed", range(5))
    def test_insightface_mode_equals_the_plain_grid(self, seed: int) -> None:
        cosines, same, folds = pairs(seed)
        result = verification_accuracy(cosines, same, folds, mode="insightface")
        accuracies, thresholds = insightface_reference(2 - 2 * cosines, same, folds)
        assert result.accuracies.tolist() == accuracies.tolist()
        assert result.thresholds.tolist() == (1 - thresholds / 2).tolist()
        assert result.mean == accuracies.mean()
        assert result.std == accuracies.std()

    @pytest.mark.parametrize("seed", range(5))
    def test_exact_mode_is_at_least_as_good_as_any_threshold_on_the_other_folds(
        self, seed: int
    ) -> None:
        cosines, same, folds = pairs(seed, count=200)
        cosines = cosines.round(2)  # ties
        result = verification_accuracy(cosines, same, folds)
        for fold, threshold in zip(result.folds, result.thresholds, strict=True):
            train = folds != fold
            achieved = np.mean((cosines[train] > threshold) == same[train])
            candidates = np.append(cosines, -2)
            assert achieved == max(np.mean((cosines[train] > t) == same[train]) for t in candidates)

    @pytest.mark.parametrize("mode", ["exact", "insightface"])
    def test_correctness_per_pair_gives_the_accuracies(
        self, mode: Literal["exact", "insightface"]
    ) -> None:
        cosines, same, folds = pairs(7)
        names = np.array([f"fold-{f}" for f in folds])
        result = verification_accuracy(cosines, same.astype(int), names, mode=mode)
        assert result.folds.tolist() == sorted(set(names))
        for name, accuracy, threshold in zip(
            result.folds, result.accuracies, result.thresholds, strict=True
        ):
            assert result.correct[names == name].mean() == accuracy
            decided = cosines[names == name] > threshold
            assert (decided == same[names == name]).tolist() == result.correct[
                names == name
            ].tolist()

    def test_folds_need_not_be_contiguous(self) -> None:
        cosines, same, folds = pairs(3)
        order = np.random.default_rng(0).permutation(len(folds))
        plain = verification_accuracy(cosines, same, folds)
        shuffled = verification_accuracy(cosines[order], same[order], folds[order])
        assert plain.accuracies.tolist() == shuffled.accuracies.tolist()
        assert plain.correct[order].tolist() == shuffled.correct.tolist()

    @settings(deadline=None)
    @given(st.integers(0, 10_000), st.sampled_from([2.0, 0.25]))
    def test_exact_mode_depends_on_the_order_of_the_scores_alone(
        self, seed: int, factor: float
    ) -> None:
        cosines, same, folds = pairs(seed, count=60)
        plain = verification_accuracy(cosines, same, folds)
        scaled = verification_accuracy(cosines * factor, same, folds)
        assert plain.correct.tolist() == scaled.correct.tolist()

    def test_separable_pairs_are_all_correct(self) -> None:
        result = verification_accuracy([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0], [0, 0, 1, 1])
        assert result.mean == 1.0
        assert result.thresholds.tolist() == pytest.approx([0.5, 0.5])

    def test_one_kind_of_pair_moves_the_threshold_outside_the_scores(self) -> None:
        alike = verification_accuracy([0.4, 0.5, 0.6], [1, 1, 1], [0, 1, 2])
        assert alike.thresholds.tolist() == [np.nextafter(t, -1) for t in (0.5, 0.4, 0.4)]
        apart = verification_accuracy([0.4, 0.5, 0.6], [0, 0, 0], [0, 1, 2])
        assert apart.thresholds.tolist() == [0.6, 0.6, 0.5]

    def test_neighbouring_floats_are_separated(self) -> None:
        low = 0.5
        high = np.nextafter(low, 1)
        result = verification_accuracy([low, high, low, high], [0, 1, 0, 1], [0, 0, 1, 1])
        assert result.mean == 1.0

    def test_float32_unit_products_slightly_above_one_are_distance_zero(self) -> None:
        result = verification_accuracy(
            torch.tensor([1.0000001, -0.1]), [1, 0], [0, 1], mode="insightface"
        )
        assert result.thresholds.tolist() == [1.0, 0.995]

    @pytest.mark.parametrize(
        ("scores", "same", "folds", "mode", "message"),
        [
            ([], [], [], "exact", "scores must be a non-empty"),
            ([0.1, np.nan], [0, 1], [0, 1], "exact", "scores holds NaN"),
            ([0.1, 0.2], [0], [0, 1], "exact", "same must hold 2"),
            ([0.1, 0.2], [0, 2], [0, 1], "exact", "same must hold booleans"),
            ([0.1, 0.2], ["0", "1"], [0, 1], "exact", "same must hold booleans"),
            ([0.1, 0.2], [0, 1], [0], "exact", "folds must hold 2"),
            ([0.1, 0.2], [0, 1], [0.5, 1.5], "exact", "folds must be integers or strings"),
            ([0.1, 0.2], [0, 1], [3, 3], "exact", "single fold"),
            ([0.1, 1.2], [0, 1], [0, 1], "insightface", "cosines"),
            ([0.1, 0.2], [0, 1], [0, 1], "grid", "mode must be"),
        ],
    )
    def test_bad_input_is_named(
        self, scores: Any, same: Any, folds: Any, mode: Any, message: str
    ) -> None:
        with pytest.raises(MetricError, match=message):
            verification_accuracy(scores, same, folds, mode=mode)


class TestCurves:
    @settings(deadline=None)
    @given(scores, scores)
    def test_roc_is_what_each_threshold_attains(self, genuine: Doubles, impostor: Doubles) -> None:
        curve = roc(genuine, impostor)
        assert (curve.far[0], curve.tar[0]) == (0, 0)
        assert (curve.far[-1], curve.tar[-1]) == (1, 1)
        assert len(curve.thresholds) == len(set(genuine) | set(impostor)) + 1
        for far, tar, threshold in zip(curve.far, curve.tar, curve.thresholds, strict=True):
            assert far == np.mean(impostor > threshold)
            assert tar == np.mean(genuine > threshold)

    @settings(deadline=None)
    @given(scores, scores, rates)
    def test_tar_at_far_is_on_the_roc(
        self, genuine: Doubles, impostor: Doubles, far: float
    ) -> None:
        (point,) = tar_at_far(genuine, impostor, far)
        curve = roc(genuine, impostor)
        assert point.tar == curve.tar[curve.thresholds == point.threshold]

    @settings(deadline=None)
    @given(scores, scores)
    def test_det_mirrors_the_roc(self, genuine: Doubles, impostor: Doubles) -> None:
        curve, mirror = roc(genuine, impostor), det(genuine, impostor)
        assert mirror.fmr.tolist() == curve.far.tolist()
        assert mirror.fnmr.tolist() == (1 - curve.tar).tolist()

    @settings(deadline=None)
    @given(scores, scores)
    def test_auc_is_the_share_of_ordered_pairs_and_the_area(
        self, genuine: Doubles, impostor: Doubles
    ) -> None:
        difference = genuine[:, None] - impostor
        area = auc(genuine, impostor)
        assert area == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)), abs=1e-15)
        curve = roc(genuine, impostor)
        assert area == pytest.approx(np.trapezoid(curve.tar, curve.far))
        assert auc(impostor, genuine) == pytest.approx(1 - area)

    @settings(deadline=None)
    @given(scores, scores)
    def test_eer_is_where_the_curve_meets_the_diagonal(
        self, genuine: Doubles, impostor: Doubles
    ) -> None:
        rate = eer(genuine, impostor)
        curve = det(genuine, impostor)
        # The polyline in its own parameter: both rates equal `rate` somewhere on it.
        gap = curve.fmr - curve.fnmr
        steps = np.arange(len(gap))
        crossing = np.interp(0, gap, steps)
        assert np.interp(crossing, steps, curve.fmr) == pytest.approx(rate)
        assert eer(-impostor, -genuine) == pytest.approx(rate)

    @settings(deadline=None)
    @given(scores, scores)
    def test_errors_of_the_pairs_add_up_to_the_eer(
        self, genuine: Doubles, impostor: Doubles
    ) -> None:
        same = np.arange(len(genuine) + len(impostor)) < len(genuine)
        errors = equal_errors(np.append(genuine, impostor), same)
        rate = eer(genuine, impostor)
        assert errors.rate == pytest.approx(rate, abs=1e-12)
        assert errors.weights.sum() == pytest.approx(1)
        # Both rates are equal at this threshold.
        assert errors.wrong[same].mean() == pytest.approx(rate, abs=1e-12)
        assert errors.wrong[~same].mean() == pytest.approx(rate, abs=1e-12)

    def test_a_pair_weighs_as_much_as_its_error_moves_the_eer(self) -> None:
        rng = np.random.default_rng(0)
        genuine, impostor = rng.normal(6, 3, 40_000), rng.normal(0, 1, 40_000)
        errors = equal_errors(np.append(genuine, impostor), np.arange(80_000) < 40_000)
        # Densities at the threshold: of the impostors three times that of the genuine.
        assert errors.weights[0] * 40_000 == pytest.approx(0.75, abs=0.03)
        shifted = eer(np.append(genuine, np.full(400, -9.0)), impostor)
        rise = 0.75 * 400 / 40_400 * (1 - errors.rate)
        assert shifted - errors.rate == pytest.approx(rise, rel=0.05)

    def test_closed_forms(self) -> None:
        assert (eer([1.0], [0.0]), auc([1.0], [0.0])) == (0, 1)
        assert (eer([0.0], [1.0]), auc([0.0], [1.0])) == (1, 0)
        assert (eer([0.5], [0.5]), auc([0.5], [0.5])) == (0.5, 0.5)
        assert eer([1, 3, 5, 7], [0, 2, 4, 6]) == 0.5

    def test_gaussian_eer_and_auc(self) -> None:
        quantiles = (np.arange(200_000) + 0.5) / 200_000
        normal = torch.special.ndtri(torch.from_numpy(quantiles)).numpy()
        below = torch.special.ndtr(torch.tensor([-1.0, 2 / np.sqrt(2)], dtype=torch.float64))
        assert eer(normal + 2, normal) == pytest.approx(below[0].item(), abs=1e-5)
        assert auc(normal + 2, normal) == pytest.approx(below[1].item(), abs=1e-5)
