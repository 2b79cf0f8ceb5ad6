"""Coarse storage: fewer bits per number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.networks import channel_statistics
from bench.registry import DEFENSES
from defenses.base import Defender, Defense


@DEFENSES.register("quantize")
@dataclass
class Quantize(Defense):
    """Uniform quantisation to a few bits per number, within 3 deviations of the channel's mean.

    Leaks: features, template. Secrets: none. Known weakness: it is a compression, not a protection;
    sign maps alone still show a face.

    Args:
        bits: Bits per number, 1 to 16; the levels are evenly spaced, so 1 bit keeps the side of
            the mean.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})

    bits: Annotated[int, Field(ge=1, le=16)] = 4

    def fit(self, world: Defender) -> None:
        """Measure the range of every channel; it is no secret."""
        clean = world.recognizer.leaking(world.leak, world.images)
        self.mean, self.deviation = channel_statistics(clean)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return the middle of the cell that each number falls in."""
        shape = (-1, *[1] * (x.ndim - 2))
        low = (self.mean - 3 * self.deviation).reshape(shape)
        cell = (6 * self.deviation / 2**self.bits).clamp_min(1e-12).reshape(shape)
        index = ((x - low) / cell).floor().clamp(0, 2**self.bits - 1)
        return low + (index + 0.5) * cell

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return the bytes at `bits` per number."""
        return shape.numel() * self.bits / 8
