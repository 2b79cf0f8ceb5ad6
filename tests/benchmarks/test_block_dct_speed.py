"""Speed of the block-DCT front end as a ratio to the papers' steps, both timed in the same run."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from defenses.frequency import block_dct

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


def test_two_products_against_upsampling_and_unfolding(benchmark: BenchmarkFixture) -> None:
    images = torch.rand(8, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    dct = block_dct._dct_matrix().float()
    kernels = torch.einsum("ia,jb->ijab", dct, dct).reshape(64, 64)

    def papers() -> Tensor:
        large = functional.interpolate(images, scale_factor=8, mode="bilinear", align_corners=True)
        colors = block_dct.to_ycbcr(large) * 255
        colors[:, 0] -= 128
        blocks = functional.unfold(colors.flatten(0, 1)[:, None], 8, stride=8)
        return (kernels @ blocks).reshape(8, 192, 112, 112)

    def ours() -> Tensor:
        return block_dct.forward(images)

    assert (papers() - ours()).abs().max() < 0.02
    ratios = []
    for _ in range(9):
        start = perf_counter()
        papers()
        middle = perf_counter()
        ours()
        ratios.append((middle - start) / (perf_counter() - middle))
    benchmark.extra_info["ratio"] = round(median(ratios), 2)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(ours, rounds=5)
    assert median(ratios) >= 3
