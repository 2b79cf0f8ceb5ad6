"""Where order statistics of all impostor scores are looked for, and the sample that tells where."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.metrics.screening import count, without

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from bench.metrics.arrays import Booleans, Doubles, Floats, Integers
    from bench.metrics.population import Population, Rows
    from bench.metrics.screening import Tile

# Images per sampled group. Groups are compared in pairs, all images of one with all of the other.
_GROUP = 64
_GROUPS_AT_ONCE = 64
_LEAST_SAMPLE = 1_000_000
_LARGEST_SAMPLE = 32_000_000
_SAMPLED_SHARE = 1 / 200
_ROUNDING = 1e-6  # of sampled scores, so that brackets do not cut through ties
# Scores that a band gathers beyond its need before it sorts them out.
_PENDING = 1 << 22


@dataclass(frozen=True)
class Pairs:
    """Pairs of images with their scores.

    Attributes:
        left: (pairs,) row of one image.
        right: (pairs,) row of the other.
        scores: (pairs,) cosines in float64, to multiples of 2**-40.
    """

    left: Rows
    right: Rows
    scores: Doubles

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: slice | Integers | Booleans) -> Pairs:
        return Pairs(self.left[chosen], self.right[chosen], self.scores[chosen])


@dataclass(frozen=True)
class Catch:
    """What a band finds in one tile.

    Attributes:
        above: Pairs above the band.
        pairs: Pairs in the band.
        scored: Pairs that were scored exactly.
        largest_error: Largest distance of a product from a better one.
    """

    above: int
    pairs: Pairs
    scored: int
    largest_error: float


@dataclass(frozen=True)
class Bracket:
    """Counts that show where an order statistic is: above <= rank < above + inside.

    Attributes:
        rank: How many impostor pairs may lie above the score looked for.
        low: The bracket holds the scores above this one ...
        high: ... and not above this one.
        above: Impostor pairs counted above the bracket.
        inside: Impostor pairs found in it. If only the highest were kept: the least number that
            reaches `low`.
    """

    rank: int
    low: float
    high: float
    above: int
    inside: int


class Sample:
    """Scores of random impostor pairs, to guess order statistics of all of them.

    The images are shuffled and cut into groups, and each group is compared with the next few. So
    every image takes part equally often, and what images differ in cancels out.

    Args:
        population: Whose impostor pairs.
        units: Its float32 unit vectors.
        cores: How many of them to use.
    """

    def __init__(self, population: Population, units: Tensor, cores: int) -> None:
        self._impostors = population.impostors
        self._ascending = np.empty(0, np.float32)
        groups = population.count // _GROUP
        if self._impostors <= _LEAST_SAMPLE or groups < 2:
            return
        wanted = np.clip(self._impostors * _SAMPLED_SHARE, _LEAST_SAMPLE, _LARGEST_SAMPLE)
        shifts = min(int(np.ceil(wanted / (groups * _GROUP**2))), groups - 1)
        shuffled = np.random.default_rng(0).permutation(population.count)[: groups * _GROUP]
        members = shuffled.reshape(groups, _GROUP)
        person = population.person[population.order].astype(np.int32)
        self._by_group = np.empty((shifts, groups, _GROUP**2), np.float32)

        def compare(chunk: slice) -> Floats:
            for shift in range(shifts):
                others = np.roll(members, shift + 1, axis=0)[chunk]
                scores = _group_scores(units, person, members[chunk], others)
                self._by_group[shift, chunk] = scores
            return np.sort(self._by_group[:, chunk], axis=None)

        starts = range(0, groups, _GROUPS_AT_ONCE)
        with on_cores(cores) as pool:
            runs = pool.map(compare, [slice(start, start + _GROUPS_AT_ONCE) for start in starts])
            scores = np.sort(np.concatenate(list(runs)), kind="stable")  # merges sorted runs
        self._ascending = scores[np.searchsorted(scores, -np.inf, side="right") :]

    def bracket(self, rank: int, sigmas: float) -> tuple[float, float]:
        """Return scores around the one with `rank` impostor pairs above it.

        The deviation is that of the counts per pair of groups, so that it holds for dependent
        scores. A limit is infinite where the sample ends; there is none of a small population.
        """
        size = len(self._ascending)
        if not size:
            return -np.inf, np.inf
        place = (rank + 1) / self._impostors * size  # from the top
        centre = self._ascending[-min(int(place) + 1, size)]
        counts = np.count_nonzero(self._by_group > centre, axis=2)
        margin = sigmas * (np.sqrt(counts.size) * counts.std() + 1)
        low, high = int(place + margin) + 2, int(place - margin)
        return (
            float(self._ascending[-low]) - _ROUNDING if low <= size else -np.inf,
            float(self._ascending[-high]) + _ROUNDING if high > 0 else np.inf,
        )

    def share(self, low: float, high: float) -> float:
        """Return the share of impostor pairs with low < score <= high; 1 without a sample."""
        if not len(self._ascending):
            return 1.0
        inside = np.diff(np.searchsorted(self._ascending, [low, high], side="right"))
        return float(inside[0] / len(self._ascending))


class Band(ABC):
    """The impostor pairs with low < score <= high, gathered from tile after tile.

    Attributes:
        rank: The band should hold the score that has this many above it, ties aside.
        low: Pairs at or below are of no interest.
        high: Pairs above are counted but not held.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.low, self.high = -np.inf, np.inf

    @abstractmethod
    def place(self, low: float, high: float) -> None:
        """Start anew with these limits."""

    @abstractmethod
    def scan(self, tile: Tile, population: Population) -> Catch:
        """Return what a tile holds. Nothing changes: several tiles may be scanned at once."""

    @abstractmethod
    def take(self, catch: Catch) -> None:
        """Add what a tile held."""

    @abstractmethod
    def bracket(self) -> Bracket:
        """Return what the band counted, after a pass."""

    def holds(self) -> bool:
        """Return whether the counts prove that the score is in the band."""
        bracket = self.bracket()
        return bracket.above <= bracket.rank < bracket.above + bracket.inside

    @abstractmethod
    def order_statistic(self, k: int) -> tuple[float, int]:
        """Return the (k + 1)-th largest impostor score, and how many are above it."""


class TopBand(Band):
    """The `rank` highest pairs and the score after them, one by one. It has no upper limit.

    When too many gather, all but the highest go and `low` rises to the best score among those. More
    than `rank` pairs reach that score, so ties at it need not be kept.
    """

    def place(self, low: float, high: float) -> None:
        """Start anew above `low`, whatever `high`."""
        del high
        self.low = low
        self._dropped = False
        self._best = Pairs(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0))
        self._parts: list[Pairs] = []
        self._pending = 0

    def scan(self, tile: Tile, population: Population) -> Catch:
        """Return the pairs above `low`."""
        return _catch(self, tile, tile.possibly_above(self.low), population)

    def take(self, catch: Catch) -> None:
        """Add pairs, and drop the lowest if there are too many."""
        self._parts.append(catch.pairs)
        self._pending += len(catch.pairs)
        if self._pending > self.rank + _PENDING:
            self._sort()
            if len(self._best) > self.rank:
                self.low = float(self._best.scores[self.rank])
                self._best = self.pairs()
                self._dropped = True

    def bracket(self) -> Bracket:
        """Return how many pairs are known to reach the band."""
        self._sort()
        known = max(len(self._best), self.rank + 1) if self._dropped else len(self._best)
        return Bracket(self.rank, self.low, self.high, 0, known)

    def holds(self) -> bool:
        """Return whether more than `rank` pairs are known, or all are."""
        return super().holds() or self.low == -np.inf

    def order_statistic(self, k: int) -> tuple[float, int]:
        """Return the (k + 1)-th largest score, k <= rank, and how many are above it."""
        scores = self._best.scores
        threshold = float(scores[k]) if k < len(scores) else self.low
        return threshold, int(np.count_nonzero(scores > threshold))

    def pairs(self) -> Pairs:
        """Return the pairs above the score at `rank`, best first."""
        return self._best[: self.order_statistic(self.rank)[1]]

    def _sort(self) -> None:
        if not self._parts:
            return
        pairs = _join([self._best, *self._parts])
        pairs = pairs[pairs.scores > self.low]  # it may have risen since they were caught
        self._best = pairs[np.argsort(-pairs.scores)]
        self._parts, self._pending = [], 0


class MiddleBand(Band):
    """The scores around a rank too high to list all pairs above it: those are counted."""

    def place(self, low: float, high: float) -> None:
        """Start anew with these limits."""
        self.low, self.high = low, high
        self._above = 0
        self._parts: list[Doubles] = []
        self._pending = 0
        self._values, self._counts = np.empty(0), np.empty(0, np.int64)

    def scan(self, tile: Tile, population: Population) -> Catch:
        """Return the pairs inside the limits and the number of those above."""
        above = tile.surely_above(self.high)
        inside = without(tile.possibly_above(self.low), above)
        return _catch(self, tile, inside, population, count(above))

    def take(self, catch: Catch) -> None:
        """Add scores, and merge equal ones if there are many."""
        self._above += catch.above
        self._parts.append(catch.pairs.scores)
        self._pending += len(catch.pairs)
        if self._pending > _PENDING:
            self._merge()

    def bracket(self) -> Bracket:
        """Return the counts above and inside."""
        self._merge()
        return Bracket(self.rank, self.low, self.high, self._above, int(self._counts.sum()))

    def order_statistic(self, k: int) -> tuple[float, int]:
        """Return the (k + 1)-th largest score and how many are above it."""
        reached = self._above + np.cumsum(self._counts[::-1])  # pairs with this score or a higher
        place = int(np.searchsorted(reached, k, side="right"))
        return float(self._values[::-1][place]), int(reached[place - 1]) if place else self._above

    def _merge(self) -> None:
        if not self._parts:
            return
        scores = np.concatenate([self._values, *self._parts])
        counts = np.concatenate([self._counts, np.ones(self._pending, np.int64)])
        self._values, place = np.unique(scores, return_inverse=True)
        self._counts = np.bincount(place, counts).astype(np.int64)
        self._parts, self._pending = [], 0


def _catch(
    band: Band, tile: Tile, mask: Tensor, population: Population, surely_above: int = 0
) -> Catch:
    """Score the pairs under a mask exactly and sort them into above, inside and below.

    Raises:
        ArithmeticError: A product is further from a better one than its bound.
    """
    found = tile.pick(mask)
    finer = tile.refined(found)
    largest_error = 0.0
    if finer is not None:
        largest_error = found.distance(finer.values, finer.errors)
        found = finer.possibly_above(band.low)
    pairs = Pairs(found.left, found.right, population.scores(found.left, found.right))
    largest_error = max(largest_error, found.distance(pairs.scores))
    above = pairs.scores > band.high
    return Catch(
        above=surely_above + int(np.count_nonzero(above)),
        pairs=pairs[(pairs.scores > band.low) & ~above],
        scored=len(pairs),
        largest_error=largest_error,
    )


def _join(parts: list[Pairs]) -> Pairs:
    return Pairs(
        np.concatenate([part.left for part in parts]),
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


@contextmanager
def on_cores(cores: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool whose threads use one core each; what was not begun is dropped at the end."""
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _group_scores(units: Tensor, person: Rows, left: Integers, right: Integers) -> Floats:
    """Return the products of each left group with its right group, one row per pair of groups.

    Genuine pairs (and pairs of an image with itself) are minus infinity.
    """
    products = torch.bmm(units[torch.from_numpy(left)], units[torch.from_numpy(right)].mT)
    scores: Floats = products.cpu().numpy()
    scores[person[left][:, :, None] == person[right][:, None, :]] = -np.inf
    return scores.reshape(len(left), -1)
