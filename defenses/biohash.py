"""BioHashing: a template becomes bits under a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defender, Defense


@DEFENSES.register("biohash")
@dataclass
class BioHash(Defense):
    """Signs of a random orthonormal projection whose seed is the key (Jin, Ling and Goh, 2004).

    Leaks: template. Secret: the projection, one per application; `insider` knows it, `adaptive`
    has keys of its own. Score: share of equal bits. Known weakness: with the key the code is a
    sign-quantised rotation, and a ridge regression or a pre-image search inverts it (Paik et al.,
    BMVC 2023).

    Args:
        bits: Length of the code, at most the length of the template.
    """

    leaks = frozenset({Leak.TEMPLATE})
    plain_probes = False

    bits: Annotated[int, Field(ge=1)] = 128

    def fit(self, world: Defender) -> None:
        """Draw the key."""
        size = world.recognizer.embedding_size
        if self.bits > size:
            raise ValueError(f"biohash needs bits <= {size}, the length of the template")
        gaussian = torch.randn(size, self.bits, generator=world.generator(), dtype=torch.float64)
        self.projection = torch.linalg.qr(gaussian).Q.float().to(world.device)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, bits) of 0 and 1."""
        return (x @ self.projection > 0).float()

    def score(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the share of equal bits in [0, 1]."""
        return ((2 * probes - 1) @ (2 * references - 1).T / self.bits + 1) / 2

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return the bytes of a packed code."""
        return shape.numel() / 8
