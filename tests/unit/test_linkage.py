from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.linkage import linkability, linked_pairs


def linkage_rows(strength: float) -> dict[str, Any]:
    """Return rows for 60 people with two photos, whose linkage scores rise with identity."""
    people = np.repeat([f"person {number:02}" for number in range(60)], 2)
    noise = np.random.default_rng(3).normal(size=(120, 120))
    same = people[:, None] == people[None]
    pairs = linked_pairs(people)
    scores = (noise + strength * same)[pairs.left, pairs.right]
    return {score.metric: score for score in linkability(scores, pairs)}


def test_records_that_cannot_be_linked_stay_within_the_null() -> None:
    table = linkage_rows(0)
    flags = dict(flag.split("=") for flag in table["d-sys"].flags)
    assert table["d-sys"].estimate.value <= float(flags["null-p95"]) + 0.03
    auc = table["linkage-auc"].estimate
    assert auc.low < 0.5 < auc.high
    # 60 people with two ordered pairs of different photos each.
    assert auc.n == table["d-sys"].estimate.n == 120
    assert table["renewed-linked"].estimate.n == 120
    assert table["renewed-linked"].estimate.value < 0.05


def test_records_that_can_be_linked_are() -> None:
    table = linkage_rows(20)
    assert table["d-sys"].estimate.value == pytest.approx(1)
    assert table["linkage-auc"].estimate.value == 1
    assert table["renewed-linked"].estimate.value == 1
    # A shift of one deviation: AUC is the normal distribution function at 1 / sqrt 2.
    assert linkage_rows(1)["linkage-auc"].estimate.value == pytest.approx(0.760, abs=0.05)
