"""Speed of the image metrics as ratios to the usual way, both timed in the same run.

Run with `pytest tests/benchmarks --benchmark-only`; the ratios are in the report's extra info.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from bench.metrics.image import ssim
from bench.metrics.perceptual import Reference, lpips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_benchmark.fixture import BenchmarkFixture


def speed_up(
    benchmark: BenchmarkFixture, usual: Callable[[], Any], ours: Callable[[], Any], rounds: int
) -> float:
    """Return how many times faster ours is: medians of interleaved runs, after one of each."""
    usual()
    ours()
    times: dict[Callable[[], Any], list[float]] = {usual: [], ours: []}
    for _ in range(rounds):
        for function, taken in times.items():
            start = perf_counter()
            function()
            taken.append(perf_counter() - start)
    ratio = median(times[usual]) / median(times[ours])
    benchmark.extra_info["ratio"] = round(ratio, 2)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(ours, rounds=rounds)
    return ratio


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Give torch one thread, as scikit-image has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_ssim_against_scikit_image(benchmark: BenchmarkFixture, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 32, 3, 112, 112)).astype(dtype)

    def scikit_image() -> list[float]:
        return [
            structural_similarity(
                x,
                y,
                channel_axis=0,
                data_range=255,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for x, y in zip(a, b, strict=True)
        ]

    assert speed_up(benchmark, scikit_image, lambda: ssim(a, b, data_range=255), rounds=9) >= 1.6


@pytest.mark.parametrize("net", ["st-alex", "st-vgg"])
def test_lpips_with_a_cached_reference(benchmark: BenchmarkFixture, net: str) -> None:
    a, b = torch.rand(2, 16, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    reference = Reference(a, net=net)
    with torch.inference_mode():
        ratio = speed_up(
            benchmark, lambda: lpips(a, b, net=net), lambda: reference.lpips(b), rounds=5
        )
    assert ratio >= 1.5
