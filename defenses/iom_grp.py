"""Index-of-max hashing with Gaussian projections."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.keyed import Key, Keyed, share_of_equal


@DEFENSES.register("iom-grp")
@dataclass
class IoMGRP(Keyed):
    """Which of a few Gaussian projections is largest, many times (Jin et al., IEEE TIFS 2018).

    Leaks: template. Secret: the projections. Score: share of equal indices. Known weakness: every
    index says that one linear form exceeds the others, and enough of them fix the template: a
    pre-image search with the key finds one (Paik et al., BMVC 2023). Source: the paper's reference
    code xingbod/IoM-Hashing; parameters of Cryptology-Algorithm-Lab/Analysis_LSH.

    Args:
        indices: Groups; one index is stored of each.
        projections: Projections in a group.
    """

    leaks = frozenset({Leak.TEMPLATE})

    indices: Annotated[int, Field(ge=1)] = 300
    projections: Annotated[int, Field(ge=2)] = 16

    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw a Gaussian (size, indices * projections) matrix."""
        return (torch.randn(size, self.indices * self.projections, generator=generator),)

    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, indices) indices in [0, projections)."""
        # max finds the same index as argmax, in less time.
        return self.contest(x, key).max(2).indices.float()

    def contest(self, x: Tensor, key: Key) -> Tensor:
        """Return the projections (N, indices, projections)."""
        return (x @ key[0]).unflatten(1, (-1, self.projections))

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the share of equal indices in [0, 1]."""
        return share_of_equal(probes, references)

    def undo(self, codes: Tensor, key: Key) -> Tensor:
        """Return the sum of the projections that won, less the mean of their groups."""
        won = functional.one_hot(codes.long(), self.projections).float() - 1 / self.projections
        return won.flatten(1) @ key[0].T

    def code_bytes(self, size: int) -> float:
        """Return the bytes of packed indices."""
        return size * math.ceil(math.log2(self.projections)) / 8
