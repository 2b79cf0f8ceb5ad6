"""The official verification protocol of Labeled Faces in the Wild, with SFace, end to end.

On every third pair of each fold: all 6,000 take two minutes of a core.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.datasets.align import Aligner
from bench.datasets.base import PairList
from bench.datasets.images import decode
from bench.datasets.lfw import LFW
from bench.leaks import Leak
from bench.metrics import pair_rate, tar_at_far, verification_accuracy, wilson
from bench.recognizers.sface import SFace


def test_sface_on_the_official_pairs(lfw_root: Path) -> None:
    dataset = LFW(lfw_root)
    official = dataset.official_pairs()
    assert len(official.same) == 6000
    pairs = PairList(*(part[::3] for part in dataclasses.astuple(official)))
    photos = np.unique(np.concatenate([pairs.left, pairs.right]))
    aligner, recognizer = Aligner(), SFace()
    embeddings = []
    for block in np.array_split(photos, 64):
        crops = [
            aligner.crop(decode(dataset.read(dataset.photos[i]), where="lfw"), "lfw") for i in block
        ]
        images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
        embeddings.append(recognizer.leaking(Leak.TEMPLATE, images))
    found = torch.cat(embeddings)
    left = found[np.searchsorted(photos, pairs.left)]
    right = found[np.searchsorted(photos, pairs.right)]
    scores = (left * right).sum(1).numpy()
    exact = verification_accuracy(scores, pairs.same, pairs.folds)
    grid = verification_accuracy(scores, pairs.same, pairs.folds, mode="insightface")
    people = [
        np.array([dataset.photos[i].identity for i in side]) for side in (pairs.left, pairs.right)
    ]
    interval = pair_rate(exact.correct, *people)
    assert len(exact.accuracies) == 10
    assert exact.mean >= 0.985
    assert exact.mean == pytest.approx(grid.mean, abs=0.002)
    assert interval.low <= exact.mean <= interval.high
    # Pairs share people, so the interval is at least as wide as one over independent pairs.
    plain = wilson(int(exact.correct.sum()), len(scores))
    assert interval.high - interval.low >= 0.9 * (plain.high - plain.low)
    (point,) = tar_at_far(scores[pairs.same], scores[~pairs.same], [3e-2])
    assert point.supported
    assert point.tar >= 0.98
