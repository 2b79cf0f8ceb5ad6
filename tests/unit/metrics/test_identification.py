from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import MetricError
from bench.metrics.identification import (
    acceptance,
    acceptance_from_scores,
    identification,
    identification_from_scores,
)

if TYPE_CHECKING:
    from bench.metrics.arrays import Doubles, Integers

NAN = np.full(2, np.nan)


def at(*degrees: float) -> Doubles:
    """Unit vectors in the plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def clouds(
    seed: int, people: int = 12, images: int = 3, dimension: int = 8, spread: float = 0.8
) -> tuple[Doubles, Integers]:
    rng = np.random.default_rng(seed)
    identities = np.repeat(np.arange(people), images)
    centres = rng.normal(size=(people, dimension))
    return centres[identities] + spread * rng.normal(size=(len(identities), dimension)), identities


def brute_force_rank(probe: Doubles, identity: int, gallery: Doubles, identities: Integers) -> int:
    def cosine(a: Doubles, b: Doubles) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    best = {
        person: max(cosine(probe, gallery[i]) for i in np.flatnonzero(identities == person))
        for person in set(identities.tolist())
    }
    return 1 + sum(s >= best[identity] for person, s in best.items() if person != identity)


class TestIdentification:
    @settings(deadline=None)
    @given(st.integers(0, 10_000))
    def test_rank_equals_brute_force(self, seed: int) -> None:
        gallery, owners = clouds(seed)
        probes, identities = clouds(seed + 1, people=12, images=2)
        result = identification(probes, identities, gallery, owners, ranks=(1, 3))
        expected = [
            brute_force_rank(p, i, gallery, owners)
            for p, i in zip(probes, identities.tolist(), strict=True)
        ]
        assert result.rank.tolist() == expected
        assert result.cmc.tolist() == [
            np.mean(np.array(expected) <= k) for k in range(1, result.people + 1)
        ]
        assert result.rates == {1: result.cmc[0], 3: result.cmc[2]}
        assert result.cmc[-1] == 1

    def test_order_of_gallery_and_kind_of_label_do_not_matter(self) -> None:
        gallery, owners = clouds(0)
        probes, identities = clouds(1)
        order = np.random.default_rng(0).permutation(len(gallery))
        plain = identification(probes, identities, gallery, owners)
        other = identification(
            torch.from_numpy(probes),
            [f"{i:02d}" for i in identities],
            torch.from_numpy(gallery[order] * 7),
            [f"{i:02d}" for i in owners[order]],
        )
        assert plain.rank.tolist() == other.rank.tolist()

    def test_ties_count_against_the_probe(self) -> None:
        result = identification(at(10), ["a"], at(0, 0, 90), ["a", "b", "c"])
        assert result.rank.tolist() == [2]
        same_person = identification(at(10), ["a"], at(0, 0, 90), ["a", "a", "c"])
        assert same_person.rank.tolist() == [1]

    def test_a_template_that_forgets_the_person_ranks_last(self) -> None:
        people = np.arange(50)
        constant = np.tile(np.random.default_rng(0).normal(size=33), (50, 1))
        result = identification(constant, people, constant, people)
        assert set(result.rank) == {50}

    def test_rank_counts_people_not_entries(self) -> None:
        result = identification(at(0), ["a"], at(20, 1, 2, 3), ["a", "b", "b", "b"])
        assert result.rank.tolist() == [2]

    def test_failed_probes_are_misses_at_every_rank(self) -> None:
        probes = np.vstack([at(0, 90), NAN, NAN])
        result = identification(probes, [0, 1, 0, 9], at(0, 90), [0, 1], ranks=(1, 2))
        assert result.failed.tolist() == [False, False, True, True]
        assert result.rank.tolist() == [1, 1, 3, 0]
        assert result.mated.tolist() == [True, True, True, False]
        assert result.rates == {1: 2 / 3, 2: 2 / 3}
        assert result.hits().tolist() == [True, True, False]
        assert result.top_score[2] == -np.inf

    def test_open_set_threshold_comes_from_the_maxima_of_non_mated_probes(self) -> None:
        gallery = at(0, 90)
        probes = at(5, 95, 40, 0, 30, 30, -150)  # mated: 0, 1, 0, 1 (wrong person)
        identities = [0, 1, 0, 1, 7, 8, 9]
        result = identification(probes, identities, gallery, [0, 1])
        strict, loose = result.tpir_at_fpir([0.5, 0.9])
        assert strict.threshold == pytest.approx(np.cos(np.radians(30)))
        assert strict.hits.tolist() == [True, True, False, False]
        assert (strict.tpir, strict.false_positives) == (0.5, 0)  # the two maxima tie
        assert loose.threshold == pytest.approx(np.cos(np.radians(120)))
        assert loose.hits.tolist() == [True, True, True, False]
        assert loose.achieved_fpir == 2 / 3

    def test_failed_non_mated_probes_stay_in_the_denominator(self) -> None:
        probes = np.vstack([at(0, 30), NAN])
        result = identification(probes, [0, 7, 8], at(0), [0])
        (point,) = result.tpir_at_fpir(0.5)
        assert (point.threshold, point.achieved_fpir) == (-np.inf, 0.5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((at(0), [0, 1], at(0), [0]), "probe_identities must hold 1"),
            ((at(0), [0], at(0, 1), [0]), "gallery_identities must hold 2"),
            ((np.ones((1, 3)), [0], at(0), [0]), "3 dimensions"),
            ((at(0), [1], at(0), [0]), "no probe's identity"),
            ((at(0), ["0"], at(0), [0]), "both be integers or both strings"),
            ((at(0), [0], np.zeros((1, 2)), [0]), "row 0 of gallery"),
            ((np.zeros((1, 2)), [0], at(0), [0]), "row 0 of probes"),
            ((at(0), [0], np.vstack([at(0), NAN]), [0, 1]), "row 1 of gallery"),
            ((np.array([[np.inf, 0]]), [0], at(0), [0]), "row 0 of probes"),
            ((at(0), [0], np.empty((0, 2)), []), "gallery must be a non-empty"),
        ],
    )
    def test_bad_input_is_named(self, arguments: tuple[Any, ...], message: str) -> None:
        with pytest.raises(MetricError, match=message):
            identification(*arguments)

    @pytest.mark.parametrize("rank", [0, 3])
    def test_ranks_beyond_the_gallery_are_refused(self, rank: int) -> None:
        with pytest.raises(MetricError, match=r"1\.\.2"):
            identification(at(0), [0], at(0, 90), [0, 1], ranks=(rank,))

    def test_fpir_needs_non_mated_probes(self) -> None:
        result = identification(at(0), [0], at(0), [0])
        with pytest.raises(MetricError, match="outside it"):
            result.tpir_at_fpir(0.1)


class TestAcceptance:
    def test_type_two_is_averaged_per_person_first(self) -> None:
        images = at(0, 10, 20, 30, 90, 100)
        people = ["a", "a", "a", "a", "b", "b"]
        reconstructions = at(0, 10, 120)
        result = acceptance(reconstructions, [0, 1, 4], images, people, np.cos(np.radians(15)))
        assert result.type1.tolist() == [True, True, False]
        assert result.type2.tolist() == [1 / 3, 2 / 3, 0]
        assert result.sar_type1 == 0.5
        assert result.sar_type2 == pytest.approx(0.25)
        assert result.identities.tolist() == ["a", "a", "b"]
        assert result.similarity.tolist() == pytest.approx([1, 1, np.cos(np.radians(30))])

    @settings(deadline=None)
    @given(st.integers(0, 10_000), st.floats(-1, 1))
    def test_equals_the_definition(self, seed: int, threshold: float) -> None:
        images, people = clouds(seed, people=5, images=4)
        rng = np.random.default_rng(seed)
        leaked = rng.integers(0, len(images), 9)
        made = images[leaked] + rng.normal(size=(9, 8))
        result = acceptance(made, leaked, images, people, threshold)
        unit = images / np.linalg.norm(images, axis=1, keepdims=True)
        cosines = made / np.linalg.norm(made, axis=1, keepdims=True) @ unit.T
        for probe, row in enumerate(leaked):
            others = (people == people[row]) & (np.arange(len(images)) != row)
            assert result.type1[probe] == (cosines[probe, row] > threshold)
            assert result.type2[probe] == np.mean(cosines[probe, others] > threshold)

    def test_failures_are_rejected_and_counted(self) -> None:
        result = acceptance(np.vstack([at(0), NAN]), [0, 0], at(0, 0), [0, 0], 0.5)
        assert result.type1.tolist() == [True, False]
        assert result.type2.tolist() == [1, 0]
        assert (result.sar_type1, result.sar_type2) == (0.5, 0.5)
        assert np.isnan(result.similarity[1])

    def test_people_with_one_image_have_no_type_two(self) -> None:
        result = acceptance(at(0, 90), [0, 1], at(0, 90, 91), [0, 1, 1], 0.5)
        assert np.isnan(result.type2[0])
        assert result.sar_type2 == 1
        alone = acceptance(at(0), [0], at(0), [0], 0.5)
        assert np.isnan(alone.sar_type2)
        assert alone.sar_type1 == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((at(0), [0, 1], at(0, 1), [0, 0], 0.5), "2 rows for 1"),
            ((at(0), [2], at(0, 1), [0, 0], 0.5), r"outside 0\.\.1"),
            ((at(0), [0.5], at(0, 1), [0, 0], 0.5), "row numbers"),
            ((at(0), [0], at(0, 1), [0], 0.5), "reference_identities must hold 2"),
            ((at(0), [0], np.ones((1, 3)), [0], 0.5), "references 3"),
            ((at(0), [0], at(0), [0], 1.5), r"\[-1, 1\]"),
            ((at(0), [0], at(0), [0], float("nan")), r"\[-1, 1\]"),
        ],
    )
    def test_bad_input_is_named(self, arguments: tuple[Any, ...], message: str) -> None:
        with pytest.raises(MetricError, match=message):
            acceptance(*arguments)


def negative_distances(a: Doubles, b: Doubles) -> Doubles:
    """dlib's comparator: higher is more alike, never above zero."""
    return -np.linalg.norm(a[:, None] - b[None], axis=2)


class TestFromScores:
    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 10_000))
    def test_cosines_as_scores_give_what_embeddings_give(self, seed: int) -> None:
        gallery, owners = clouds(seed)
        probes, identities = clouds(seed + 1, people=13, images=2)
        probes[::5] = np.nan
        unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
        scores = probes / np.linalg.norm(probes, axis=1, keepdims=True) @ unit.T
        found = identification_from_scores(scores, identities, owners, ranks=(1, 5))
        expected = identification(probes, identities, gallery, owners, ranks=(1, 5))
        assert found.rank.tolist() == expected.rank.tolist()
        assert found.rates == expected.rates
        assert np.allclose(found.top_score, expected.top_score, atol=1e-12)

        leaked = np.random.default_rng(seed).integers(0, len(gallery), len(probes))
        mates = owners[leaked][:, None] == owners[None, :]
        mates[np.arange(len(probes)), leaked] = False
        diagonal = scores[np.arange(len(probes)), leaked]
        one = acceptance_from_scores(diagonal, scores, mates, owners[leaked], 0.4)
        other = acceptance(probes, leaked, gallery, owners, 0.4)
        assert one.type1.tolist() == other.type1.tolist()
        assert one.type2.tolist() == other.type2.tolist()
        assert (one.sar_type1, one.sar_type2) == (other.sar_type1, other.sar_type2)
        assert np.allclose(one.similarity, other.similarity, atol=1e-12, equal_nan=True)

    def test_negative_distances_rank_the_nearest_first(self) -> None:
        gallery, owners = clouds(3)
        probes, identities = clouds(4)
        scores = negative_distances(probes, gallery)
        found = identification_from_scores(torch.from_numpy(scores), identities, owners)
        nearest = owners[np.argmax(scores, axis=1)]
        assert found.hits().tolist() == (nearest == identities).tolist()
        assert (found.top_score < 0).all()

    def test_equal_scores_are_misses_and_no_tolerance_is_added(self) -> None:
        scores = np.array([[-0.5, -0.5], [-0.5, np.nextafter(-0.5, -1)]])
        found = identification_from_scores(scores, ["a", "a"], ["a", "b"])
        assert found.rank.tolist() == [2, 1]

    def test_thresholds_need_not_be_cosines(self) -> None:
        mates = np.array([[True, True, False]])
        result = acceptance_from_scores([-0.1], [[-0.3, -0.7, -0.1]], mates, ["a"], -0.6)
        assert (result.type1.tolist(), result.type2.tolist()) == ([True], [0.5])

    @pytest.mark.parametrize("bad", [[[0.5, np.nan]], [[np.inf, 0.5]]])
    def test_a_score_that_is_missing_on_its_own_is_refused(self, bad: list[list[float]]) -> None:
        with pytest.raises(MetricError, match="row 0 of scores"):
            identification_from_scores(bad, ["a"], ["a", "b"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([0.5], [[0.5]], [[1]], ["a"], 0.5), "booleans of shape"),
            (([0.5], [[0.5]], [True], ["a"], 0.5), "booleans of shape"),
            (([0.5, 0.5], [[0.5]], [[True]], ["a"], 0.5), "one finite score per row"),
            (([np.nan], [[0.5]], [[True]], ["a"], 0.5), "one finite score per row"),
            (([0.5], [[0.5]], [[True]], ["a"], np.nan), "threshold is NaN"),
            (([0.5], [[0.5]], [[True]], ["a", "b"], 0.5), "identities must hold 1"),
        ],
    )
    def test_bad_input_of_acceptance_is_named(
        self, arguments: tuple[Any, ...], message: str
    ) -> None:
        with pytest.raises(MetricError, match=message):
            acceptance_from_scores(*arguments)
