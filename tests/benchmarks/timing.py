"""Times as ratios within one process, taken in turns, so that a busy machine slows both sides."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture


def seconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def ratio(method: Callable[[], object], bare: Callable[[], object], rounds: int = 5) -> float:
    """Return the median over rounds of the method's time over that of the bare work."""
    method(), bare()
    return median(seconds(method) / seconds(bare) for _ in range(rounds))


def told(benchmark: BenchmarkFixture, **found: float) -> None:
    """Put figures that a test has measured itself beside its name."""
    benchmark.extra_info.update(found)
    benchmark.pedantic(lambda: None)
