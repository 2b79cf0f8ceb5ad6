"""The IJB protocols from files to numbers, against loops that follow the definitions."""

from __future__ import annotations

from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.datasets.ijb import OneToN, OneToOne, Pooling, read_one_to_n, read_one_to_one
from bench.errors import MetricError
from bench.ijb import pool, search, verify

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SUBJECTS = 24
PER_SUBJECT = 3
TEMPLATES = SUBJECTS * PER_SUBJECT
FARS = (0.001, 0.01, 0.1, 1.0)
FPIRS = (0.1, 0.3)


def subject(template: int) -> int:
    return (template - 1) % SUBJECTS


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IJB-C's five kinds of list, for 72 templates of 1 to 6 crops from 1 to 3 media."""
    folder = tmp_path_factory.mktemp("meta")
    random = np.random.default_rng(0)
    owner = random.permutation(np.repeat(np.arange(1, TEMPLATES + 1), random.integers(1, 7, 72)))
    faces, points = [], []
    for number, template in enumerate(owner, start=1):
        landmarks = " ".join(f"{value:.3f}" for value in random.uniform(0, 112, 10))
        # A medium has one number wherever it occurs, so that two templates may share it.
        faces.append(f"{number}.jpg {template} {random.integers(1, 4)}\n")
        points.append(f"{number}.jpg {landmarks} {random.uniform(0.3, 1):.3f}\n")
    pairs = [
        f"{left} {right} {int(subject(left) == subject(right))}\n"
        for left, right in random.permutation(list(combinations(range(1, TEMPLATES + 1), 2)))[:2000]
    ]
    (folder / "ijbc_face_tid_mid.txt").write_text("".join(faces))
    (folder / "ijbc_name_5pts_score.txt").write_text("".join(points))
    (folder / "ijbc_template_pair_label.txt").write_text("".join(pairs))
    # Subjects 0-8 are in the first gallery, 9-17 in the second, 18-23 in none.
    lists = {
        "gallery_G1": range(1, 10),
        "gallery_G2": range(10, 19),
        "probe_mixed": range(SUBJECTS + 1, TEMPLATES + 1),
    }
    for name, templates in lists.items():
        rows = [f"{template},{subject(template)},x.jpg\n" for template in templates]
        (folder / f"ijbc_1N_{name}.csv").write_text(
            "TEMPLATE_ID,SUBJECT_ID,FILENAME\n" + "".join(rows)
        )
    return folder


@pytest.fixture(scope="module")
def one_to_one(meta: Path) -> OneToOne:
    return read_one_to_one(meta, "ijbc")


@pytest.fixture(scope="module")
def one_to_n(meta: Path) -> OneToN:
    return read_one_to_n(meta, "ijbc")


@pytest.fixture(scope="module")
def features(one_to_one: OneToOne) -> NDArray[np.float64]:
    """Features of the crops and of their mirror images, (2, faces, 16), of unequal norms."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(SUBJECTS, 16))
    own = centres[[subject(template) for template in one_to_one.faces.templates]]
    noise = random.normal(size=(2, *own.shape))
    return (own + 1.6 * noise) * random.uniform(0.5, 2, (len(own), 1))


def pooled(
    lists: OneToOne, features: NDArray[np.float64], pooling: Pooling
) -> dict[int, NDArray[np.float64]]:
    """Return each template's feature, as insightface's script sums it in loops."""
    plain, mirrored = features
    images = plain + mirrored if pooling.flip else plain.copy()
    if not pooling.norm:
        images /= np.linalg.norm(images, axis=1, keepdims=True)
    if pooling.detector:
        images *= lists.landmarks.scores.astype(float)[:, None]
    result = {}
    for template in set(lists.faces.templates.tolist()):
        mine = lists.faces.templates == template
        total = np.zeros(images.shape[1])
        for medium in set(lists.faces.media[mine].tolist()):
            total += images[mine & (lists.faces.media == medium)].mean(axis=0)
        result[template] = total / np.linalg.norm(total)
    return result


@pytest.mark.parametrize("flags", product([False, True], repeat=3))
def test_verification_follows_the_definition(
    one_to_one: OneToOne, features: NDArray[np.float64], flags: tuple[bool, bool, bool]
) -> None:
    pooling = Pooling(*flags)
    result = verify(one_to_one, pool(one_to_one, features[0], pooling, features[1]), FARS)
    assert result.pooling == str(pooling)
    vectors, pairs = pooled(one_to_one, features, pooling), one_to_one.pairs
    listed = zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
    scores = np.array([vectors[left] @ vectors[right] for left, right in listed])
    np.testing.assert_allclose(result.scores, scores, atol=1e-12)
    genuine, impostor = scores[pairs.same], np.sort(scores[~pairs.same])[::-1]
    for far, point in zip(FARS, result.points, strict=True):
        allowed = int(far * len(impostor))
        threshold = impostor[allowed] if allowed < len(impostor) else -np.inf
        assert point.tar == np.mean(genuine > threshold)
        assert point.false_accepts == allowed
        assert point.impostors == len(impostor)


def test_poolings_differ(one_to_one: OneToOne, features: NDArray[np.float64]) -> None:
    results = {
        tuple(
            verify(one_to_one, pool(one_to_one, features[0], Pooling(*flags), features[1])).scores
        )
        for flags in product([False, True], repeat=3)
    }
    assert len(results) == 8


def test_search_follows_the_definition(
    one_to_one: OneToOne, one_to_n: OneToN, features: NDArray[np.float64]
) -> None:
    pooling = Pooling()
    templates = pool(one_to_one, features[0], pooling, features[1])
    result = search(one_to_n, templates, ranks=(1, 3), fpirs=FPIRS)
    assert result.pooling == "N1D1F1"
    vectors = pooled(one_to_one, features, pooling)
    expected = [
        by_hand(vectors, gallery.templates.tolist(), one_to_n) for gallery in one_to_n.galleries
    ]
    for index, key in enumerate((1, 3)):
        assert result.rates[key] == pytest.approx(np.mean([row[index] for row in expected]))
    for index, fpir in enumerate(FPIRS, start=2):
        assert result.tpirs[fpir] == pytest.approx(np.mean([row[index] for row in expected]))
    assert 0.2 < result.tpirs[0.1] <= result.tpirs[0.3] <= result.rates[1] < result.rates[3] <= 1


def by_hand(
    vectors: dict[int, NDArray[np.float64]], gallery: list[int], lists: OneToN
) -> list[float]:
    """Return rank-1, rank-3 and TPIR at each FPIR of one gallery, probe by probe."""
    enrolled = {subject(template): vectors[template] for template in gallery}
    ranks, mated, non_mated = [], [], []
    for template in lists.probes.templates.tolist():
        scores = {name: float(vectors[template] @ vector) for name, vector in enrolled.items()}
        top = max(scores.values())
        if subject(template) not in enrolled:
            non_mated.append(top)
            continue
        ranks.append(sum(score >= scores[subject(template)] for score in scores.values()))
        mated.append(top)
    non_mated.sort(reverse=True)
    rates = [float(np.mean(np.array(ranks) <= k)) for k in (1, 3)]
    for fpir in FPIRS:
        threshold = non_mated[round(fpir * len(non_mated) * 1e6) // 1_000_000]
        hits = [rank == 1 and top > threshold for rank, top in zip(ranks, mated, strict=True)]
        rates.append(float(np.mean(hits)))
    return rates


def test_each_gallery_has_its_own_non_mated_probes(
    one_to_one: OneToOne, one_to_n: OneToN, features: NDArray[np.float64]
) -> None:
    templates = pool(one_to_one, features[0], Pooling(flip=False))
    first, second = search(one_to_n, templates, ranks=(1,), fpirs=FPIRS).galleries
    assert first.people == second.people == 9
    assert not (first.mated & second.mated).any()
    assert int((~first.mated & ~second.mated).sum()) == 12  # the people of neither gallery


def test_wrong_features_are_refused(one_to_one: OneToOne, features: NDArray[np.float64]) -> None:
    with pytest.raises(MetricError, match="rows for"):
        pool(one_to_one, features[0][1:], Pooling(flip=False))
    with pytest.raises(MetricError, match="N1D1F1 needs the features of the mirror images"):
        pool(one_to_one, features[0], Pooling())
