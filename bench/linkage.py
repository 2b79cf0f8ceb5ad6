"""Can the records of two applications be joined? Which pairs are compared, and what scores say.

Whoever receives a result file takes the numbers again from its scores: nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.errors import MetricError
from bench.metrics import (
    clustered_mean,
    clustered_rate,
    global_linkability,
    link_gains,
    unlinkability,
)
from bench.results import Score

LINKAGE = "linkage"
"""Name of the scores in the raw values."""

NON_MATED = 10_000
"""Pairs of different people that linkage is measured against, drawn from all of them."""

LINKING_FMR = 1e-3

APPLICATIONS = 64
"""Most pairs of applications. One alone would say how alike records are under two keys, not how
alike they are under keys: of the keys of a scheme some may undo each other."""


@dataclass(frozen=True)
class Pairs:
    """Records of a first application (left) and of a second (right), by number of the photo.

    Every person is with one pair of applications, the first of which has the left record of every
    photo, the second the right.

    Attributes:
        left: (P,) photo behind the first record.
        right: (P,) photo behind the second.
        left_identity: (P,) whom the first shows.
        right_identity: (P,) whom the second shows.
        homes: (photos,) the pair of applications that each photo's person is with; the person,
            where one pair is for all.
        one_for_all: Whether one pair of applications is for all, as in result files of before.
    """

    left: NDArray[np.intp]
    right: NDArray[np.intp]
    left_identity: NDArray[np.str_]
    right_identity: NDArray[np.str_]
    homes: NDArray[np.intp]
    one_for_all: bool = False

    @property
    def renewed(self) -> NDArray[np.bool_]:
        """(P,) whether both records are of the very same photo."""
        return self.left == self.right

    @property
    def mated(self) -> NDArray[np.bool_]:
        """(P,) whether the records are of different photos of one person."""
        return (self.left_identity == self.right_identity) & ~self.renewed

    @property
    def non_mated(self) -> NDArray[np.bool_]:
        """(P,) whether the records are of different people."""
        return self.left_identity != self.right_identity


def linked_pairs(identities: NDArray[np.str_]) -> Pairs:
    """Return every renewed and every mated pair of photos, and some of the non-mated.

    There are as many pairs of applications as people, but not more than `APPLICATIONS`.

    Args:
        identities: (N,) whom the photos show.
    """
    same = identities[:, None] == identities[None, :]
    others = np.random.default_rng(0).permutation(np.flatnonzero(~same))[:NON_MATED]
    left, right = np.divmod(np.concatenate([np.flatnonzero(same), others]), len(identities))
    homes = np.unique(identities, return_inverse=True)[1] % APPLICATIONS
    return Pairs(left, right, identities[left], identities[right], homes)


def linkability(scores: NDArray[np.float64], pairs: Pairs, confidence: float = 0.95) -> list[Score]:
    """Return D_sys beside its permutation null, the linker's AUC, and how renewal holds.

    Mated are different photos of one person, one protected by each application. The renewed record
    of the very same photo is scored apart: a linker ties it to the revoked one at the threshold
    that ties 1 of 1000 records of different people. The units of the intervals are pairs of
    applications, whose keys all people with them share; people, where one pair is for all.

    Args:
        scores: (P,) linkage scores, higher is more alike.
        pairs: What was compared.
        confidence: Nominal coverage of the intervals, in (0, 1).

    Raises:
        MetricError: There is no mated or no non-mated pair, or a score is not finite.
    """
    if len(scores) != len(pairs.left):
        raise MetricError(f"There are {len(scores)} linkage scores for {len(pairs.left)} pairs.")
    mated, others = scores[pairs.mated], np.sort(scores[pairs.non_mated])
    found = unlinkability(mated, others)
    left, right = pairs.homes[pairs.left], pairs.homes[pairs.right]
    units, strangers = left[pairs.mated], (left[pairs.non_mated], right[pairs.non_mated])
    gains = link_gains(mated, scores[pairs.non_mated])
    d_sys = global_linkability(
        gains, units, *strangers, null_mean=found.null_mean, confidence=confidence
    )
    null = (f"null-mean={found.null_mean:.3f}", f"null-p95={found.null_p95:.3f}")
    below = np.searchsorted(others, mated, "left") + np.searchsorted(others, mated, "right")
    auc = clustered_mean(below / (2 * len(others)), units, confidence=confidence)
    auc = replace(auc, low=max(auc.low, 0), high=min(auc.high, 1))
    threshold = others[-1 - int(LINKING_FMR * len(others))]
    tied = (scores[pairs.renewed] > threshold).astype(float)
    renewed = clustered_rate(tied, left[pairs.renewed], confidence=confidence)
    keys = "" if pairs.one_for_all else ":many-keys"
    return [
        Score("d-sys", f"d-sys{keys}", d_sys, flags=null),
        Score("linkage-auc", f"linkage-auc{keys}", auc),
        Score("renewed-linked", f"renewed-linked{keys}", renewed),
    ]
