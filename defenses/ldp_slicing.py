"""LDP-Slicing: every bit of every pixel told at random, the important ones more truly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.adapted import Adapted
from defenses.frequency import block_dct

BITS = 8

WEIGHTS = (4.0, 1.0, 1.0)
"""Of brightness and the two colors."""


@DEFENSES.register("ldp-slicing")
@dataclass
class LDPSlicing(Adapted):
    """LDP-Slicing (Cao et al., CVPR 2026, arXiv 2603.03711): randomized response on bit planes.

    Leaks: image. One level of the Haar transform loses its low band, which removes what a person
    sees; the rest becomes 24 bits a pixel of brightness and two colors, and each bit is told truly
    with probability e^eps / (e^eps + 1). A pixel's budget is split in proportion to
    sqrt(w 2^(b - 1)) with b from 1, the lowest bit, to 8, and w 4 for brightness and 1 for a color.
    The bits make an image again, as large as before. Secrets: the draws, which nobody keeps.
    Re-implemented from a third party's words. Unverified: how the rest is brought to 8 bits (here
    around 128, where it fits without loss but for extremes), and that the server is adapted by
    distillation in place of training from scratch. Known weaknesses: the budget holds for one
    pixel, and a face is in many; several records of one image average the noise away; a network
    retrained on records.

    Args:
        epsilon: Privacy budget of a pixel, the sum over its 24 bits.
    """

    leaks = frozenset({Leak.IMAGE})
    strongest: ClassVar[Mapping[str, Any]] = {"epsilon": 0}

    epsilon: Annotated[float, Field(ge=0)] = 20.0

    @property
    def plain_probes(self) -> bool:
        """A record looks like an image, so what is compared is always a record."""
        return False

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 3, 112, 112) brightness and colors in [0, 1], of 8 bits."""
        truth = 1 / (1 + (-self.budgets()).exp())
        numbers = _without_low_band(x).mul_(255).add_(128).round_().clamp_(0, 255).int()
        told = torch.zeros_like(numbers)
        for bit in range(BITS):
            drawn = torch.rand(x.shape, generator=generator)
            lie = (drawn >= truth[:, bit, None, None]).int().to(x.device)
            told += (numbers >> bit & 1 ^ lie) << bit
        return told.to(x.dtype) / 255

    def budgets(self) -> Tensor:
        """Return the budget (3, 8) of every bit of a pixel, from the lowest to the highest."""
        weights = torch.tensor(WEIGHTS)[:, None] * 2.0 ** torch.arange(BITS)
        shares = weights.sqrt()
        return self.epsilon * shares / shares.sum()

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return a byte for each number."""
        return float(shape.numel())


def _without_low_band(images: Tensor) -> Tensor:
    """Return centered brightness and colors (N, 3, H, W) less the means of squares of 4 pixels."""
    colors = block_dct.to_ycbcr(images)
    low = functional.avg_pool2d(colors, 2)
    return colors - functional.interpolate(low, scale_factor=2.0, mode="nearest")
