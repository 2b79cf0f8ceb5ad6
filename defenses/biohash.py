"""BioHashing: a template becomes bits under a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.keyed import Key, Keyed


@DEFENSES.register("biohash")
@dataclass
class BioHash(Keyed):
    """Signs of a random orthonormal projection (Jin, Ling and Goh, Pattern Recognition 2004).

    Leaks: template. Secret: the projection. Score: share of equal bits; at an angle a between two
    templates it is 1 - a / pi on average. Known weakness: with the key the code is a sign-quantised
    rotation, and a ridge regression or a pre-image search inverts it (Paik et al., BMVC 2023).
    Source: the paper; the two variants are those of Cryptology-Algorithm-Lab/Analysis_LSH
    ("gaussian") and idiap/BTPBench ("uniform").

    Args:
        bits: Length of the code, at most the length of the template.
        variant: "gaussian" orthonormalises a Gaussian matrix and cuts at 0; "uniform" takes numbers
            in [0, 1) and cuts each code at the mean of its own projections.
    """

    leaks = frozenset({Leak.TEMPLATE})

    bits: Annotated[int, Field(ge=1)] = 128
    variant: Literal["gaussian", "uniform"] = "gaussian"

    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw an orthonormal (size, bits) matrix."""
        if self.bits > size:
            raise ValueError(f"biohash needs bits <= {size}, the length of the template")
        draw = torch.randn if self.variant == "gaussian" else torch.rand
        matrix = draw(size, self.bits, generator=generator, dtype=torch.float64)
        return (torch.linalg.qr(matrix).Q.float(),)

    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, bits) of 0 and 1."""
        projected = x @ key[0]
        return (projected > self._cut(projected)).float()

    def contest(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, bits, 2): the cut and the projection."""
        projected = x @ key[0]
        return torch.stack([self._cut(projected).expand_as(projected), projected], 2)

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the share of equal bits in [0, 1]."""
        return ((2 * probes - 1) @ (2 * references - 1).T / self.bits + 1) / 2

    def undo(self, codes: Tensor, key: Key) -> Tensor:
        """Return the signs turned back."""
        return (2 * codes - 1) @ key[0].T

    def code_bytes(self, size: int) -> float:
        """Return the bytes of a packed code."""
        return size / 8

    def _cut(self, projected: Tensor) -> Tensor:
        mean = self.variant == "uniform"
        return projected.mean(1, keepdim=True) if mean else projected.new_zeros(())
