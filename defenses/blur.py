"""Gaussian blur: the oldest control beside pixelation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defense


@DEFENSES.register("blur")
@dataclass
class Blur(Defense):
    """Gaussian blur, matched by the unchanged recogniser.

    Leaks: image. Secrets: none. Known weakness: a linear map with a spectrum that falls but does
    not vanish; a network trained on pairs sharpens the face again.

    Args:
        sigma: Deviation of the kernel in pixels.
    """

    leaks = frozenset({Leak.IMAGE})

    sigma: Annotated[float, Field(gt=0, le=18)] = 4.0

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 3, 112, 112) blurred images."""
        place = torch.arange(x.shape[-1], device=x.device)
        weight = torch.exp(-((place[:, None] - place) ** 2) / (2 * self.sigma**2))
        # Every row sums to 1, so that edges do not darken.
        weight = weight / weight.sum(1, keepdim=True)
        return weight @ x @ weight.T
