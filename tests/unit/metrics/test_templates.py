from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import MetricError
from bench.metrics import templates as module
from bench.metrics.templates import pair_scores, pool_templates

if TYPE_CHECKING:
    from bench.metrics.arrays import Doubles, Integers


def photos(
    seed: int = 0, count: int = 60, people: int = 7, dimension: int = 5
) -> tuple[Doubles, Integers, Integers, Doubles, Doubles]:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(count, dimension)),
        rng.integers(100, 100 + people, count),
        rng.integers(0, 4, count),
        rng.random(count) + 0.1,
        rng.normal(size=(count, dimension)),
    )


def reference(
    features: Doubles,
    templates: Integers,
    media: Integers,
    scores: Doubles | None = None,
    flipped: Doubles | None = None,
    keep_norm: bool = True,
) -> Doubles:
    """deepinsight's image2template_feature with its three switches, image by image."""
    features = features + (0 if flipped is None else flipped)
    if not keep_norm:
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    if scores is not None:
        features = features * scores[:, None]
    pooled = []
    for template in sorted(set(templates)):
        total = 0
        for medium in sorted(set(media[templates == template])):
            total = total + features[(templates == template) & (media == medium)].mean(axis=0)
        pooled.append(total / np.linalg.norm(total))
    return np.array(pooled)


class TestPooling:
    @pytest.mark.parametrize("keep_norm", [True, False])
    @pytest.mark.parametrize("weighted", [True, False])
    @pytest.mark.parametrize("mirrored", [True, False])
    def test_all_variants_equal_the_loop(
        self, keep_norm: bool, weighted: bool, mirrored: bool
    ) -> None:
        features, templates, media, every_score, every_flip = photos()
        scores = every_score if weighted else None
        flipped = every_flip if mirrored else None
        pooled = pool_templates(
            features, templates, media, keep_norm=keep_norm, detector_scores=scores, flipped=flipped
        )
        expected = reference(features, templates, media, scores, flipped, keep_norm)
        assert np.abs(pooled.embeddings - expected).max() < 1e-13
        assert pooled.variant == f"N{keep_norm:d}D{weighted:d}F{mirrored:d}"
        assert pooled.ids.tolist() == sorted(set(templates))
        assert pooled.images.tolist() == [np.sum(templates == t) for t in pooled.ids]
        assert pooled.media.tolist() == [len(set(media[templates == t])) for t in pooled.ids]

    @settings(deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 40))
    def test_order_of_images_does_not_matter(self, seed: int, count: int) -> None:
        features, templates, media, *_ = photos(seed, count)
        order = np.random.default_rng(seed).permutation(count)
        plain = pool_templates(features, templates, media)
        other = pool_templates(features[order], templates[order], media[order])
        assert np.abs(plain.embeddings - other.embeddings).max() < 1e-12
        assert np.linalg.norm(plain.embeddings, axis=1) == pytest.approx(1)

    def test_repeated_frames_of_one_video_count_once(self) -> None:
        still, frame = np.array([1.0, 0]), np.array([0, 1.0])
        pooled = pool_templates([still, frame, frame, frame], ["t"] * 4, ["photo"] + ["video"] * 3)
        assert pooled.embeddings[0] == pytest.approx(np.sqrt([0.5, 0.5]))

    def test_a_medium_counts_within_its_template(self) -> None:
        pooled = pool_templates(np.eye(3), [1, 1, 2], [9, 8, 9])
        assert pooled.media.tolist() == [2, 1]

    def test_precision_follows_the_features(self) -> None:
        features, templates, media, scores, flipped = photos()
        single = pool_templates(
            torch.from_numpy(features).float(),
            templates,
            media,
            detector_scores=scores,
            flipped=flipped,
        )
        double = pool_templates(features, templates, media, detector_scores=scores, flipped=flipped)
        assert single.embeddings.dtype == np.float32
        assert np.abs(single.embeddings - double.embeddings).max() < 1e-6

    def test_rows_of_ids(self) -> None:
        pooled = pool_templates(np.eye(3), ["b", "a", "c"], [0, 0, 0])
        assert pooled.rows(["c", "a", "c"]).tolist() == [2, 0, 2]
        with pytest.raises(MetricError, match="no template has the id 'd'"):
            pooled.rows(["a", "d"])

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((np.eye(2), [0], [0, 0]), {}, "templates must hold 2"),
            ((np.eye(2), [0, 1], [0]), {}, "media must hold 2"),
            ((np.eye(2), [0, 1], [0, 0]), {"flipped": np.eye(3)}, "flipped has shape"),
            ((np.eye(2), [0, 1], [0, 0]), {"detector_scores": [1]}, "1 entries for 2"),
            ((np.eye(2), [0, 1], [0, 0]), {"detector_scores": [1, -1]}, "not negative"),
            ((np.eye(2), [0, 1], [0, 0]), {"detector_scores": [1, np.nan]}, "finite"),
            ((np.eye(2), [0, 1], [0, 0]), {"detector_scores": [1, 0]}, "template 1 sum to zero"),
            (([[1, 0], [-1, 0]], [5, 5], [0, 1]), {}, "template 5 sum to zero"),
            (([[1, 0], [np.nan, 0]], [5, 6], [0, 0]), {}, "template 6"),
            (([[1, 0], [0, 0]], [5, 5], [0, 0]), {"keep_norm": False}, "row 1 of features"),
        ],
    )
    def test_bad_input_is_named(
        self, arguments: tuple[Any, ...], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(MetricError, match=message):
            pool_templates(*arguments, **options)


class TestPairScores:
    @settings(deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 300), st.booleans())
    def test_equals_gathering_both_rows(self, seed: int, count: int, in_order: bool) -> None:
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(50, 6))
        left, right = rng.integers(0, 50, (2, count))
        if in_order:
            left.sort()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_BLOCK_ROWS", 7)
            scores = pair_scores(vectors, left, right)
        assert scores == pytest.approx((vectors[left] * vectors[right]).sum(axis=1), abs=1e-12)

    def test_single_precision_is_within_two_ten_millionths(self) -> None:
        rng = np.random.default_rng(0)
        vectors = rng.normal(size=(700, 512))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        single = vectors.astype(np.float32)
        left, right = rng.integers(0, 700, (2, 20_000))
        left[:700] = right[:700] = np.arange(700)
        exact = (single[left].astype(np.float64) * single[right]).sum(axis=1)
        scores = pair_scores(torch.from_numpy(single), torch.from_numpy(left), right)
        assert scores.dtype == np.float32
        assert np.abs(scores - exact).max() < 2e-7

    def test_more_blocks_than_sixteen_bits_count(self) -> None:
        place = np.random.default_rng(0).permutation(70_000).astype(np.int32)
        blocks = list(module._blocks(place, 1, 70_000))
        assert [first for first, _ in blocks] == list(range(70_000))
        assert [place[pairs].item() for _, pairs in blocks] == list(range(70_000))

    def test_an_empty_list_has_no_scores(self) -> None:
        none = np.empty(0, np.int64)
        assert pair_scores(np.eye(2), none, none).shape == (0,)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((np.eye(2), [0, 1], [0]), "left has 2 rows and right 1"),
            ((np.eye(2), [0, 2], [0, 0]), r"left holds a row outside 0\.\.1"),
            ((np.eye(2), [0], [-1]), r"right holds a row outside 0\.\.1"),
            ((np.eye(2), [0.0], [0]), "left must be a vector of row numbers"),
            ((np.ones(2), [0], [0]), "2 axes"),
        ],
    )
    def test_bad_input_is_named(self, arguments: tuple[Any, ...], message: str) -> None:
        with pytest.raises(MetricError, match=message):
            pair_scores(*arguments)
