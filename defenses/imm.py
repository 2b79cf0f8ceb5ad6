"""Index of minimum and maximum over random rows of a Hadamard matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from scipy.linalg import hadamard
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.keyed import Key, Keyed, share_of_equal


@DEFENSES.register("imm")
@dataclass
class IMM(Keyed):
    """Which of a few Hadamard projections is largest, and which smallest, many times.

    The template is filled up with zeros to a power of two and multiplied with the Hadamard matrix;
    every group compares some random rows of the product.

    Leaks: template. Secret: which rows form a group. Score: share of equal indices. Known weakness:
    two indices of a group tell more of the template than the one of `iom-grp`, and the rows are
    orthogonal and public (Paik et al., BMVC 2023, reverse it). Source: facts of
    Cryptology-Algorithm-Lab/Analysis_LSH; how rows are drawn is our reading.

    Args:
        groups: Groups; two indices are stored of each.
        rows: Rows in a group, at most the length of the template rounded up to a power of two.
    """

    leaks = frozenset({Leak.TEMPLATE})

    groups: Annotated[int, Field(ge=1)] = 300
    rows: Annotated[int, Field(ge=2)] = 16

    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw the (groups, rows) rows of the Hadamard matrix, and take its first columns."""
        order = 2 ** math.ceil(math.log2(size))
        if self.rows > order:
            raise ValueError(f"imm needs rows <= {order}, the number of Hadamard rows")
        chosen = torch.rand(self.groups, order, generator=generator).argsort(1)[:, : self.rows]
        matrix = torch.from_numpy(hadamard(order)[:, :size]).float()
        return matrix.T.contiguous(), chosen.contiguous()

    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, 2 * groups) indices in [0, rows): of the largest, then of the smallest."""
        projected = self._projected(x, key)
        # The first that equals the extreme: argmax and max take longer, number by number.
        falling = torch.arange(self.rows, 0, -1, dtype=torch.int16, device=x.device)[:, None]
        extremes = projected.amax(1, keepdim=True), projected.amin(1, keepdim=True)
        found = [((projected == extreme) * falling).amax(1) for extreme in extremes]
        return self.rows - torch.cat(found).T.float()

    def contest(self, x: Tensor, key: Key) -> Tensor:
        """Return the projections, then their negatives, (N, 2 * groups, rows)."""
        projected = self._projected(x, key)
        return torch.cat([projected, -projected]).permute(2, 0, 1)

    def _projected(self, x: Tensor, key: Key) -> Tensor:
        """Return projections (groups, rows, N)."""
        matrix, chosen = key
        # Whole rows are copied, which indexing with a matrix does in five times the time.
        return (matrix.T @ x.T).index_select(0, chosen.flatten()).unflatten(0, chosen.shape)

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the share of equal indices in [0, 1]."""
        return share_of_equal(probes, references)

    def undo(self, codes: Tensor, key: Key) -> Tensor:
        """Return the sum of the largest rows less that of the smallest."""
        matrix, chosen = key
        largest, smallest = codes.long().chunk(2, dim=1)
        group = torch.arange(self.groups, device=codes.device)
        rows = matrix.T
        return (rows[chosen[group, largest]] - rows[chosen[group, smallest]]).sum(1)

    def code_bytes(self, size: int) -> float:
        """Return the bytes of packed indices."""
        return size * math.ceil(math.log2(self.rows)) / 8
