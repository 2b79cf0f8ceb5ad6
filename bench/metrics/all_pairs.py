"""TAR at FAR over all N (N - 1) / 2 pairs, exact, in one pass and in bounded memory.

A sample of pairs brackets each threshold. One pass over tiles of products then counts the impostor
pairs above each bracket and scores those inside it in float64, as the products themselves are not
exact (`bench.metrics.screening`). The counts prove that the threshold lies in its bracket; if it
does not, that target is done again with a wider one.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from bench.errors import MetricError
from bench.metrics.arrays import row_products
from bench.metrics.bands import Band, Bracket, Catch, MiddleBand, Pairs, Sample, TopBand, on_cores
from bench.metrics.population import Population
from bench.metrics.screening import Float32Screen, Int8Screen, Screen, int8_products_are_exact
from bench.metrics.verification import OperatingPoint, allowed_errors, as_fars, operating_point
from bench.precision import full_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from bench.metrics.arrays import Integers, Numbers

# The false matches of a target are kept one by one if they are at most this share of all pairs and
# at most this many, or few in any case.
_LISTED_SHARE = Fraction(1, 1000)
_MOST_LISTED = 6_000_000
_FEW = 100_000
# A bracket reaches this many standard deviations of the sample to either side; doubled on failure.
_SIGMAS = 3.5
# Fewer pairs than this take less than a second anyway.
_WORTH_A_TRIAL = 50_000_000
_TRIAL = 512  # rows and columns of the tile that is timed


@dataclass(frozen=True)
class Certificate:
    """Why the result is exact.

    All impostor pairs above each bracket were counted and all inside were scored exactly. Pairs
    were only told apart by their products where these are further from the limit than their error
    bound, which was checked wherever a better product was computed.

    Attributes:
        brackets: Where the thresholds are. One serves all targets whose false matches are listed,
            each other target has its own.
        screen: Arithmetic of the products, "float32" or "int8"; it does not change the result.
        largest_error: Largest distance met of a product from a better one: of int8 from float32,
            and of float32 from the exact score.
        scored: Impostor pairs that were scored exactly.
        passes: Passes over all pairs; more than one if a bracket missed its threshold.
    """

    brackets: list[Bracket]
    screen: str
    largest_error: float
    scored: int
    passes: int


@dataclass(frozen=True)
class AllPairs:
    """Verification over all pairs of a set of images.

    Attributes:
        points: One operating point per target, in the order asked for.
        genuine: All pairs of one person.
        impostors: The highest impostor pairs, best first: the false matches of every target up to
            1e-3 that allows no more than 6 million, or that allows no more than 100,000.
        people: (K,) the distinct identities.
        person: (N,) place in `people` of each row.
        images: (K,) images of each person. With `person` of both rows of the false matches this is
            what `bench.metrics.intervals` takes.
        certificate: Why this is exact.
    """

    points: list[OperatingPoint]
    genuine: Pairs
    impostors: Pairs
    people: npt.NDArray[np.generic]
    person: Integers
    images: Integers
    certificate: Certificate

    def false_matches(self, far: float) -> Pairs:
        """Return the impostor pairs accepted at a target, best first.

        Raises:
            MetricError: The target was not asked for, or it allows too many to list.
        """
        point = next((point for point in self.points if point.far == far), None)
        if point is None:
            raise MetricError(f"far {far} is none of {[point.far for point in self.points]}")
        if point.false_accepts > len(self.impostors):
            raise MetricError(
                f"{point.false_accepts} pairs are accepted at far {far}; only the highest"
                f" {len(self.impostors)} are listed"
            )
        return self.impostors[: point.false_accepts]


def all_pairs(
    embeddings: Numbers,
    identities: Numbers,
    fars: float | Iterable[float],
    *,
    block: int = 8192,
    keep: int = 0,
) -> AllPairs:
    """Return the true accept rate at each false accept rate over all pairs of different images.

    The definition of `tar_at_far`, on float64 cosines rounded to multiples of 2**-40. The result
    is the same for every `block` and every machine's choice of arithmetic. Time grows as N**2 d;
    memory holds the embeddings once more, one tile, the genuine pairs and the listed impostors.

    Args:
        embeddings: (N, d) of any norm. A tensor on a GPU is processed there, in full float32.
        identities: (N,) integers or strings.
        fars: Targets in (0, 1].
        block: Rows of a tile; it has a sixteenth as many columns. On a GPU, more keep it busier.
        keep: List at least this many of the highest impostor pairs, such as 6 times the number of
            false matches for a bootstrap (`bench.metrics.intervals.tar_statistic`).

    Raises:
        MetricError: Wrong shapes, rows that are zero or not finite, no genuine or no impostor pair,
            a target outside (0, 1], a block below 8.
    """
    targets = as_fars(fars)
    if block < 8 or keep < 0:
        raise MetricError(f"block must be at least 8 and keep at least 0, not {block} and {keep}")
    population = Population(embeddings, identities)
    genuine = _genuine(population)
    allowed = [allowed_errors(far, population.impostors) for far in targets]
    most = min(_MOST_LISTED, max(_FEW, int(_LISTED_SHARE * population.impostors)))
    listed = max([k for k in allowed if k <= most] + [keep])
    top = TopBand(min(listed, population.impostors))
    middle = [MiddleBand(k) for k in set(allowed) if top.rank < k < population.impostors]
    certificate = _search(population, genuine, [top, *middle], block)
    band_of = {band.rank: band for band in middle}
    points = []
    for far, k in zip(targets, allowed, strict=True):
        if k == population.impostors:
            threshold, false_accepts = -np.inf, k
        else:
            threshold, false_accepts = band_of.get(k, top).order_statistic(k)
        points.append(
            operating_point(far, threshold, false_accepts, genuine.scores, population.impostors)
        )
    return AllPairs(
        points=points,
        genuine=_in_callers_rows(genuine, population),
        impostors=_in_callers_rows(top.pairs(), population),
        people=population.people,
        person=population.person,
        images=population.images,
        certificate=certificate,
    )


def _genuine(population: Population) -> Pairs:
    left, right = population.genuine_pairs()
    return Pairs(left, right, population.scores(left, right))


def _in_callers_rows(pairs: Pairs, population: Population) -> Pairs:
    rows = population.order.astype(np.int32)
    return Pairs(rows[pairs.left], rows[pairs.right], pairs.scores)


def _search(
    population: Population, genuine: Pairs, bands: Sequence[Band], block: int
) -> Certificate:
    """Run passes over all impostor pairs until every band holds its order statistic."""
    passes, scored, largest_error, sigmas = 0, 0, 0.0, _SIGMAS
    with full_float32(), _threads_of_our_own() as available:
        cores = available if population.on_host else 1
        sample, screen = _prepare(population, genuine, bands, block, cores)
        missing = bands
        while missing:
            for band in missing:
                band.place(*sample.bracket(band.rank, sigmas))
            for catches in _scan(screen, missing, population, cores):
                for band, catch in zip(missing, catches, strict=True):
                    band.take(catch)
                    scored += catch.scored
                    largest_error = max(largest_error, catch.largest_error)
            missing = [band for band in missing if not band.holds()]
            passes, sigmas = passes + 1, sigmas * 2
    return Certificate(
        brackets=[band.bracket() for band in bands],
        screen=screen.name,
        largest_error=largest_error,
        scored=scored,
        passes=passes,
    )


def _scan(
    screen: Screen, bands: Sequence[Band], population: Population, cores: int
) -> Iterator[list[Catch]]:
    """Yield what the bands find in each tile.

    Each core works on a tile of its own, from the product to the exact scores, so that none waits
    for another.
    """
    workspaces = threading.local()

    def scan(block: tuple[slice, slice]) -> list[Catch]:
        if not hasattr(workspaces, "mine"):
            workspaces.mine = screen.workspace()
        tile = screen.tile(*block, workspaces.mine)
        return [band.scan(tile, population) for band in bands]

    with on_cores(cores) as pool:
        yield from pool.map(scan, screen.blocks())


def _prepare(
    population: Population, genuine: Pairs, bands: Sequence[Band], block: int, cores: int
) -> tuple[Sample, Screen]:
    units = population.units()
    sample = Sample(population, units, cores)
    brackets = [sample.bracket(band.rank, _SIGMAS) for band in bands]
    chosen: type[Screen] = Float32Screen
    if population.on_host and population.impostors >= _WORTH_A_TRIAL:
        chosen = _fastest_screen(population, units, sample, brackets)
    return sample, chosen(units, (genuine.left, genuine.right), block, -(-block // 16))


def _fastest_screen(
    population: Population, units: Tensor, sample: Sample, brackets: Sequence[tuple[float, float]]
) -> type[Screen]:
    """Return the screen that leads to the same exact scores in the least time.

    That is the time of its products, and of the float32 ones of pairs that int8 leaves in doubt.
    """
    if not int8_products_are_exact(_TRIAL, units.shape[1]):
        return Float32Screen
    places = np.linspace(0, population.count - 1, _TRIAL, dtype=np.int32)
    nobody = np.empty(0, np.int32)
    vectors = units[torch.from_numpy(places)]
    rows = np.arange(_TRIAL)
    finer = partial(row_products, vectors.numpy(), rows, rows[::-1], np.float32)
    per_finer = _seconds(finer) / _TRIAL
    seconds_per_pair = {}
    for screen in (Float32Screen, Int8Screen):
        trial = screen(vectors, (nobody, nobody), _TRIAL, _TRIAL)
        block = slice(0, _TRIAL), slice(0, _TRIAL), trial.workspace()
        error = trial.tile(*block).error.max()
        doubtful = sum(sample.share(low - error, high + error) for low, high in brackets)
        per_product = _seconds(partial(trial.tile, *block)) / _TRIAL**2
        seconds_per_pair[screen] = per_product + doubtful * per_finer * (screen is Int8Screen)
    return min(seconds_per_pair, key=seconds_per_pair.__getitem__)


def _seconds(action: Callable[[], object]) -> float:
    """Return the shortest processor time of a few: what other work disturbs least."""
    times = []
    for _ in range(4):
        start = time.thread_time()
        action()
        times.append(time.thread_time() - start)
    return min(times)


@contextmanager
def _threads_of_our_own() -> Iterator[int]:
    """Keep torch from splitting single products among cores; yield how many cores it used."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield cores
    finally:
        torch.set_num_threads(cores)
