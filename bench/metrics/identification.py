"""Identification (1:N) and the acceptance of reconstructions (SAR).

Scores are cosines. A probe row of NaN stands for a failure (no reconstruction, or no face in it):
it is kept in every denominator and counts as a miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench.errors import MetricError
from bench.metrics.arrays import (
    TIE,
    Booleans,
    Doubles,
    Integers,
    Numbers,
    as_indices,
    as_labels,
    unit_rows,
)
from bench.metrics.verification import allowed_errors, as_fars

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PROBES_PER_BLOCK = 1024


@dataclass(frozen=True)
class OpenSetPoint:
    """Open-set identification at one false positive identification rate.

    Attributes:
        fpir: The target, in (0, 1].
        tpir: Share of mated probes whose person ranks first with a score above the threshold;
            1 - tpir is FNIR (ISO/IEC 19795-1).
        threshold: The (floor(fpir * non-mated probes) + 1)-th largest of the per-probe maxima.
        false_positives: Non-mated probes with a score above the threshold.
        achieved_fpir: false_positives / non-mated probes, never above `fpir`.
        hits: (mated,) whether each mated probe is identified.
    """

    fpir: float
    tpir: float
    threshold: float
    false_positives: int
    achieved_fpir: float
    hits: Booleans


@dataclass(frozen=True)
class Identification:
    """Where each probe's person ranks among the people of a gallery.

    Attributes:
        mated: (probes,) whether the probe's person is in the gallery.
        failed: (probes,) whether the probe is a row of NaN.
        rank: (probes,) 1 + number of other people who score at least as high as the probe's own
            person; a person's score is that of the best entry. A failed mated probe ranks behind
            the whole gallery (`people` + 1); 0 where not mated.
        top_score: (probes,) highest cosine over the gallery; minus infinity for a failed probe.
        people: Number of people in the gallery: a guess hits at rank k with chance k / people.
        cmc: (people,) share of mated probes with rank <= 1, 2, ..., failures in the denominator.
        rates: Rank-k rate for each k asked for.
    """

    mated: Booleans
    failed: Booleans
    rank: Integers
    top_score: Doubles
    people: int
    cmc: Doubles
    rates: dict[int, float]

    def hits(self, rank: int = 1) -> Booleans:
        """Return for each mated probe whether its person is among the first `rank`: (mated,)."""
        return self.rank[self.mated] <= rank

    def tpir_at_fpir(self, fpirs: float | Iterable[float]) -> list[OpenSetPoint]:
        """Return the open-set rate at each false positive identification rate, in their order.

        The threshold comes from the maximum over the gallery of each non-mated probe, as in
        ISO/IEC 19795-1; not from single impostor scores.

        Args:
            fpirs: Targets in (0, 1].

        Raises:
            MetricError: A target outside (0, 1], or no non-mated probe.
        """
        targets = as_fars(fpirs)
        maxima = np.sort(self.top_score[~self.mated])[::-1]
        if not maxima.size:
            raise MetricError(
                "every probe's person is in the gallery; FPIR needs probes of people outside it"
            )
        return [self._open_set_point(fpir, maxima) for fpir in targets]

    def _open_set_point(self, fpir: float, maxima: Doubles) -> OpenSetPoint:
        k = allowed_errors(fpir, len(maxima))
        threshold = maxima[k] if k < len(maxima) else -np.inf
        false_positives = int(np.count_nonzero(maxima > threshold))
        hits = self.hits() & (self.top_score[self.mated] > threshold)
        return OpenSetPoint(
            fpir=fpir,
            tpir=float(hits.mean()),
            threshold=float(threshold),
            false_positives=false_positives,
            achieved_fpir=false_positives / len(maxima),
            hits=hits,
        )


@dataclass(frozen=True)
class Acceptance:
    """How often reconstructions are accepted as the person whose record leaked (SAR).

    Attributes:
        threshold: Cosine above which a pair is accepted.
        sar_type1: Success rate against the leaked image itself: mean within each person, then over
            people.
        sar_type2: Success rate against the person's other images, averaged in the same way; NaN if
            no probe's person has another image.
        type1: (probes,) whether the leaked image accepts the reconstruction.
        type2: (probes,) share of the person's other images that accept it, 0 for a failure; NaN
            where there is no other image.
        similarity: (probes,) cosine to the leaked image; NaN for a failure.
        identities: (probes,) the person of each probe, to cluster an interval by.
    """

    threshold: float
    sar_type1: float
    sar_type2: float
    type1: Booleans
    type2: Doubles
    similarity: Doubles
    identities: npt.NDArray[np.generic]


def identification(
    probes: Numbers,
    probe_identities: Numbers,
    gallery: Numbers,
    gallery_identities: Numbers,
    *,
    ranks: Sequence[int] = (1,),
) -> Identification:
    """Rank the people of a gallery for each probe.

    Ties count against the probe: cosines within 2**-40 of each other are equal. Probes of people
    outside the gallery serve `Identification.tpir_at_fpir` only.

    Args:
        probes: (P, d) embeddings of any norm, such as those of reconstructions; NaN rows failed.
        probe_identities: (P,) integers or strings.
        gallery: (G, d) embeddings, without the leaked images themselves if the rate is to say what
            a leak gives away about other pictures of the person.
        gallery_identities: (G,) of the same kind; a person may have several entries.
        ranks: Which rank-k rates to report, each in 1..people.

    Raises:
        MetricError: Unequal lengths, unusable rows, a rank out of range, or no mated probe.
    """
    queries = unit_rows(probes, "probes", missing=True)
    entries = unit_rows(gallery, "gallery")
    if queries.shape[1] != entries.shape[1]:
        raise MetricError(
            f"probes have {queries.shape[1]} dimensions and the gallery {entries.shape[1]}"
        )
    people, first, entries = _by_person(entries, gallery_identities)
    own, mated = _find(as_labels(probe_identities, "probe_identities", len(queries)), people)
    if not mated.any():
        raise MetricError("no probe's identity is in the gallery, so no probe has a rank")
    if not all(1 <= rank <= len(people) for rank in ranks):
        raise MetricError(f"ranks must lie in 1..{len(people)}, the people in the gallery")

    failed = np.isnan(queries[:, 0])
    rank = np.full(len(queries), len(people) + 1)
    top_score = np.full(len(queries), -np.inf)
    alive = np.flatnonzero(~failed)
    for start in range(0, len(alive), _PROBES_PER_BLOCK):
        rows = alive[start : start + _PROBES_PER_BLOCK]
        scores = np.maximum.reduceat(queries[rows] @ entries.T, first, axis=1)
        top_score[rows] = scores.max(axis=1)
        own_score = np.take_along_axis(scores, own[rows, None], axis=1)
        rank[rows] = np.count_nonzero(scores >= own_score - TIE, axis=1)
    rank[~mated] = 0

    cmc = np.cumsum(np.bincount(rank[mated], minlength=len(people) + 2)[1:-1]) / mated.sum()
    return Identification(
        mated=mated,
        failed=failed,
        rank=rank,
        top_score=top_score,
        people=len(people),
        cmc=cmc,
        rates={k: float(cmc[k - 1]) for k in ranks},
    )


def acceptance(
    reconstructions: Numbers,
    leaked: Numbers,
    references: Numbers,
    reference_identities: Numbers,
    threshold: float,
) -> Acceptance:
    """Return the share of reconstructions that a verification system accepts (Mai et al., NbNet).

    Type I compares with the leaked image, type II with all other images of the same person. Both
    are averaged within each person first, or people with many images would dominate.

    Args:
        reconstructions: (P, d) embeddings of any norm; rows of NaN failed and are never accepted.
        leaked: (P,) for each reconstruction the row in `references` of the image whose record
            leaked.
        references: (R, d) embeddings of the images to compare with.
        reference_identities: (R,) integers or strings.
        threshold: Cosine above which a pair is accepted, calibrated on other people than these
            (`threshold_at_fmr`).

    Raises:
        MetricError: Unequal lengths, unusable rows, or a threshold outside [-1, 1].
    """
    queries = unit_rows(reconstructions, "reconstructions", missing=True)
    images = unit_rows(references, "references")
    rows = as_indices(leaked, "leaked", len(images))
    if len(rows) != len(queries):
        raise MetricError(f"leaked has {len(rows)} rows for {len(queries)} reconstructions")
    if queries.shape[1] != images.shape[1]:
        raise MetricError(
            f"reconstructions have {queries.shape[1]} dimensions and references {images.shape[1]}"
        )
    if not -1 <= threshold <= 1:
        raise MetricError(f"threshold must be a cosine in [-1, 1], not {threshold}")
    names, person = np.unique(
        as_labels(reference_identities, "reference_identities", len(images)), return_inverse=True
    )

    similarity = np.einsum("ij,ij->i", queries, images[rows])
    type1 = similarity > threshold  # NaN is not above anything
    owner = person[rows]
    type2 = np.full(len(queries), np.nan)
    for someone in np.unique(owner):
        mine, album = np.flatnonzero(owner == someone), np.flatnonzero(person == someone)
        if len(album) > 1:
            accepted = queries[mine] @ images[album].T > threshold
            accepted &= album != rows[mine, None]
            type2[mine] = np.count_nonzero(accepted, axis=1) / (len(album) - 1)
    return Acceptance(
        threshold=float(threshold),
        sar_type1=_mean_over_people(type1, owner),
        sar_type2=_mean_over_people(type2, owner),
        type1=type1,
        type2=type2,
        similarity=similarity,
        identities=names[owner],
    )


def _by_person(
    entries: Doubles, identities: Numbers
) -> tuple[npt.NDArray[np.generic], Integers, Doubles]:
    """Return the people in ascending order, each one's first row, and the rows in that order."""
    labels = as_labels(identities, "gallery_identities", len(entries))
    order = np.argsort(labels, kind="stable")
    people, first = np.unique(labels[order], return_index=True)
    return people, first, entries[order]


def _find(
    labels: npt.NDArray[np.generic], people: npt.NDArray[np.generic]
) -> tuple[Integers, Booleans]:
    """Return each label's place among the sorted people (0 if absent) and whether it is there."""
    if (labels.dtype.kind in "US") != (people.dtype.kind in "US"):
        raise MetricError("probe and gallery identities must both be integers or both strings")
    place = np.minimum(np.searchsorted(people, labels), len(people) - 1)
    found = people[place] == labels
    return np.where(found, place, 0), found


def _mean_over_people(values: npt.NDArray[np.generic], owner: Integers) -> float:
    """Return the mean over people of each one's mean; NaN entries are left out."""
    known = ~np.isnan(values)
    if not known.any():
        return float("nan")
    sums = np.bincount(owner[known], values[known])
    counts = np.bincount(owner[known])
    return float((sums[counts > 0] / counts[counts > 0]).mean())
