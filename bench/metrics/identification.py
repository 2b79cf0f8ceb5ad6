"""Identification (1:N) and the acceptance of reconstructions (SAR).

Both take a matrix of similarities of any kind (`..._from_scores`; higher is more alike), or
embeddings, which are compared by cosine. A probe row of NaN stands for a failure (no
reconstruction, or no face in it): it is kept in every denominator and counts as a miss.
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
    Floats,
    Integers,
    Numbers,
    as_floats,
    as_indices,
    as_labels,
    to_numpy,
    unit_rows,
)
from bench.metrics.verification import allowed_errors, as_fars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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
        top_score: (probes,) highest score over the gallery; minus infinity for a failed probe.
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
        threshold: Score above which a pair is accepted.
        sar_type1: Success rate against the leaked image itself: mean within each person, then over
            people.
        sar_type2: Success rate against the person's other images, averaged in the same way; NaN if
            no probe's person has another image.
        type1: (probes,) whether the leaked image accepts the reconstruction.
        type2: (probes,) share of the person's other images that accept it, 0 for a failure; NaN
            where there is no other image.
        similarity: (probes,) score against the leaked image; NaN for a failure.
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
    owners = as_labels(gallery_identities, "gallery_identities", len(entries))
    return _identify(
        lambda rows: queries[rows] @ entries.T,
        np.isnan(queries[:, 0]),
        as_labels(probe_identities, "probe_identities", len(queries)),
        owners,
        ranks,
        tie=TIE,
    )


def identification_from_scores(
    scores: Numbers,
    probe_identities: Numbers,
    gallery_identities: Numbers,
    *,
    ranks: Sequence[int] = (1,),
) -> Identification:
    """Rank the people of a gallery for each probe, by scores of any kind.

    As `identification`, for comparators other than the cosine (a negative distance, a protected
    code's own score). Equal scores count against the probe.

    Args:
        scores: (P, G) similarity of each probe and gallery entry; rows of NaN failed.
        probe_identities: (P,) integers or strings.
        gallery_identities: (G,) of the same kind; a person may have several entries.
        ranks: Which rank-k rates to report, each in 1..people.

    Raises:
        MetricError: Unequal lengths, a row with some scores that are not finite, a rank out of
            range, or no mated probe.
    """
    matrix, failed = _as_score_matrix(scores, "scores")
    return _identify(
        lambda rows: matrix[rows],
        failed,
        as_labels(probe_identities, "probe_identities", matrix.shape[0]),
        as_labels(gallery_identities, "gallery_identities", matrix.shape[1]),
        ranks,
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
    owner = person[rows]
    type2 = np.full(len(queries), np.nan)
    for someone in np.unique(owner):
        mine, album = np.flatnonzero(owner == someone), np.flatnonzero(person == someone)
        accepted = queries[mine] @ images[album].T > threshold
        type2[mine] = _accepted_share(accepted, album != rows[mine, None])
    return _acceptance(similarity, type2, names[owner], threshold)


def acceptance_from_scores(
    leaked: Numbers, others: Numbers, mates: Numbers, identities: Numbers, threshold: float
) -> Acceptance:
    """Return the share of reconstructions that a verification system accepts, by any scores.

    As `acceptance`, for comparators other than the cosine.

    Args:
        leaked: (P,) score of each reconstruction against the image whose record leaked; NaN failed
            and is never accepted.
        others: (P, R) scores against other images; NaN throughout the row of a failure.
        mates: (P, R) booleans, true where such an image shows the reconstruction's person; never
            the leaked image itself.
        identities: (P,) the person of each reconstruction, integers or strings.
        threshold: Score above which a pair is accepted, calibrated on other people than these
            (`threshold_at_fmr`).

    Raises:
        MetricError: Unequal shapes, scores that are neither finite nor those of a failure, or a
            threshold that is NaN.
    """
    similarity = as_floats(leaked, "leaked", 1).astype(np.float64)
    matrix, failed = _as_score_matrix(others, "others")
    selected = to_numpy(mates)
    if selected.dtype != np.bool_ or selected.shape != matrix.shape:
        raise MetricError(
            f"mates must hold booleans of shape {matrix.shape}, as others does; it holds "
            f"{selected.dtype} of shape {selected.shape}"
        )
    if similarity.shape != failed.shape or (np.isfinite(similarity) == failed).any():
        raise MetricError("leaked must hold one finite score per row of others, NaN if that failed")
    if np.isnan(threshold):
        raise MetricError("threshold is NaN")
    return _acceptance(
        similarity,
        _accepted_share(matrix > threshold, selected.astype(np.bool_)),
        as_labels(identities, "identities", len(similarity)),
        threshold,
    )


def _as_score_matrix(scores: Numbers, name: str) -> tuple[Floats, Booleans]:
    """Return the matrix and which of its rows failed."""
    matrix = as_floats(scores, name, 2)
    failed: Booleans = np.asarray(np.isnan(matrix).all(axis=1))
    broken = ~(np.isfinite(matrix).all(axis=1) | failed)
    if broken.any():
        raise MetricError(
            f"row {int(np.argmax(broken))} of {name} holds NaN or infinity; only a probe that "
            "failed may, and then in the whole row"
        )
    return matrix, failed


def _identify(
    scores_of: Callable[[Integers], Floats],
    failed: Booleans,
    probe_labels: npt.NDArray[np.generic],
    gallery_labels: npt.NDArray[np.generic],
    ranks: Sequence[int],
    tie: float = 0.0,
) -> Identification:
    """Rank people by the (rows, G) scores that `scores_of` gives for some rows of the probes."""
    order = np.argsort(gallery_labels, kind="stable")
    people, first = np.unique(gallery_labels[order], return_index=True)
    own, mated = _find(probe_labels, people)
    if not mated.any():
        raise MetricError("no probe's identity is in the gallery, so no probe has a rank")
    if not all(1 <= rank <= len(people) for rank in ranks):
        raise MetricError(f"ranks must lie in 1..{len(people)}, the people in the gallery")

    rank = np.full(len(failed), len(people) + 1)
    top_score = np.full(len(failed), -np.inf)
    alive = np.flatnonzero(~failed)
    for start in range(0, len(alive), _PROBES_PER_BLOCK):
        rows = alive[start : start + _PROBES_PER_BLOCK]
        scores = np.maximum.reduceat(scores_of(rows)[:, order], first, axis=1)
        top_score[rows] = scores.max(axis=1)
        own_score = np.take_along_axis(scores, own[rows, None], axis=1)
        rank[rows] = np.count_nonzero(scores >= own_score - tie, axis=1)
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


def _accepted_share(accepted: Booleans, mates: Booleans) -> Doubles:
    """Return for each row the share of its mates that accept it; NaN without a mate."""
    counts = np.count_nonzero(mates, axis=1)
    shares = np.count_nonzero(accepted & mates, axis=1) / np.maximum(counts, 1)
    return np.where(counts > 0, shares, np.nan)


def _acceptance(
    similarity: Doubles, type2: Doubles, identities: npt.NDArray[np.generic], threshold: float
) -> Acceptance:
    type1 = similarity > threshold  # NaN is not above anything
    owner = np.unique(identities, return_inverse=True)[1]
    return Acceptance(
        threshold=float(threshold),
        sar_type1=_mean_over_people(type1, owner),
        sar_type2=_mean_over_people(type2, owner),
        type1=type1,
        type2=type2,
        similarity=similarity,
        identities=identities,
    )


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
