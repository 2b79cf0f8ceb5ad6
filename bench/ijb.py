"""IJB-B and IJB-C: the results of a network, from its features and the protocols' lists.

The lists are read by `bench.datasets.ijb`, the numbers computed by `bench.metrics`. Two habits of
public scripts are left out on purpose: the nearest point of a ROC curve, which may exceed its FAR,
and one 1:N gallery made of both, in which every probe is mated and no FPIR exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import MetricError
from bench.metrics.arrays import as_floats
from bench.metrics.identification import Identification, OpenSetPoint, identification
from bench.metrics.templates import Templates, pair_scores, pool_templates
from bench.metrics.verification import OperatingPoint, tar_at_far

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.datasets.ijb import OneToN, OneToOne, Pooling
    from bench.datasets.ijb import Templates as Enrolled
    from bench.metrics.arrays import Floats, Numbers

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)
FPIRS = (1e-2, 1e-1)


@dataclass(frozen=True)
class Verification:
    """The result of the 1:1 protocol.

    Attributes:
        pooling: How templates were formed, such as "N1D1F1"; other poolings do not compare.
        scores: (pairs,) cosines in the order of the list.
        points: One operating point per false accept rate.
    """

    pooling: str
    scores: Floats
    points: list[OperatingPoint]


@dataclass(frozen=True)
class Search:
    """The result of the 1:N protocol.

    Attributes:
        pooling: How templates were formed, such as "N1D1F1"; other poolings do not compare.
        galleries: Each gallery's own result; probes of the other gallery's people are non-mated.
        open_set: Each gallery's operating points, in the order of the rates asked for.
        rates: Rank-k rate for each k, the mean of the galleries.
        tpirs: TPIR for each FPIR, the mean of the galleries.
    """

    pooling: str
    galleries: tuple[Identification, ...]
    open_set: tuple[list[OpenSetPoint], ...]
    rates: dict[int, float]
    tpirs: dict[float, float]


def pool(
    one_to_one: OneToOne, features: Numbers, pooling: Pooling, flipped: Numbers | None = None
) -> Templates:
    """Return the templates of a set, for `verify` and `search` alike.

    Args:
        one_to_one: The lists; 1:N templates are made of the same crops.
        features: (faces, d) features as the network returns them, in the order of the lists.
        pooling: Norm, detector's score and mirror images.
        flipped: (faces, d) features of the mirror images, which pooling with flip needs.

    Raises:
        MetricError: Another number of features than crops, no features of the mirror images where
            they are needed, or a template without a direction.
    """
    faces = one_to_one.faces
    rows = as_floats(features, "features", 2)
    if len(rows) != len(faces.images):
        raise MetricError(f"features has {len(rows)} rows for {len(faces.images)} crops")
    if pooling.flip and flipped is None:
        raise MetricError(f"pooling {pooling} needs the features of the mirror images as flipped")
    return pool_templates(
        rows,
        faces.templates,
        faces.media,
        keep_norm=pooling.norm,
        detector_scores=one_to_one.landmarks.scores if pooling.detector else None,
        flipped=flipped if pooling.flip else None,
    )


def verify(
    one_to_one: OneToOne, templates: Templates, fars: Sequence[float] = FARS
) -> Verification:
    """Score the listed pairs of templates: TAR at each FAR.

    Args:
        one_to_one: The lists.
        templates: From `pool`.
        fars: False accept rates, in (0, 1].

    Raises:
        MetricError: A pair names a template that was not pooled, no genuine or no impostor pair, or
            a rate out of range.
    """
    pairs = one_to_one.pairs
    left, right = templates.rows(pairs.left), templates.rows(pairs.right)
    scores = pair_scores(templates.embeddings, left, right)
    points = tar_at_far(scores[pairs.same], scores[~pairs.same], fars)
    return Verification(templates.variant, scores, points)


def search(
    one_to_n: OneToN,
    templates: Templates,
    *,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
) -> Search:
    """Search the probes in each gallery separately, and average the galleries' rates.

    Rank-k counts mated probes only. The open-set threshold comes from each non-mated probe's
    highest score (ISO/IEC 19795-1), not from single impostor scores.

    Args:
        one_to_n: The lists.
        templates: From `pool`.
        ranks: Which rank-k rates to report.
        fpirs: False positive identification rates, in (0, 1].

    Raises:
        MetricError: A list names a template that was not pooled, a gallery has no mated or no
            non-mated probe, or a rank or rate is out of range.
    """
    probes = _embeddings(templates, one_to_n.probes)
    results = tuple(
        identification(
            probes,
            one_to_n.probes.subjects,
            _embeddings(templates, gallery),
            gallery.subjects,
            ranks=ranks,
        )
        for gallery in one_to_n.galleries
    )
    open_set = tuple(result.tpir_at_fpir(fpirs) for result in results)
    tpirs = np.mean([[point.tpir for point in points] for points in open_set], axis=0)
    return Search(
        pooling=templates.variant,
        galleries=results,
        open_set=open_set,
        rates={rank: float(np.mean([result.rates[rank] for result in results])) for rank in ranks},
        tpirs=dict(zip(fpirs, tpirs.tolist(), strict=True)),
    )


def _embeddings(templates: Templates, listed: Enrolled) -> Floats:
    return templates.embeddings[templates.rows(listed.templates)]
