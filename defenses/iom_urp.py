"""Index-of-max hashing with permutations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.keyed import Key, Keyed, share_of_equal


@DEFENSES.register("iom-urp")
@dataclass
class IoMURP(Keyed):
    """Where the product of permuted templates is largest in a window (Jin et al., IEEE TIFS 2018).

    Leaks: template. Secret: the permutations. Score: share of equal indices. Known weakness: as
    `iom-grp`; an index points at numbers that are large together, and with the key the pairs that
    won give the template back but for its sign. Source: the paper's reference
    code xingbod/IoM-Hashing; parameters of Cryptology-Algorithm-Lab/Analysis_LSH.

    Args:
        indices: Number of indices stored.
        window: Numbers of the permuted product that compete, at most the length of the template.
        factors: Permuted copies that are multiplied.
    """

    leaks = frozenset({Leak.TEMPLATE})

    indices: Annotated[int, Field(ge=1)] = 600
    window: Annotated[int, Field(ge=2)] = 100
    factors: Annotated[int, Field(ge=1)] = 2

    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw (indices, factors, window) positions: the beginnings of permutations."""
        if self.window > size:
            raise ValueError(f"iom-urp needs window <= {size}, the length of the template")
        order = torch.rand(self.indices, self.factors, size, generator=generator).argsort(2)
        return (order[:, :, : self.window].contiguous(),)

    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, indices) indices in [0, window)."""
        return torch.cat([self._largest(part, key[0]) for part in x.split(16)])

    def contest(self, x: Tensor, key: Key) -> Tensor:
        """Return the products (N, indices, window)."""
        return self._products(x, key[0]).permute(2, 0, 1)

    def undo(self, codes: Tensor, key: Key) -> Tensor | None:
        """Return the main direction of the pairs of numbers that won, of two factors only.

        A pair wins where its product is large, so that counts of pairs, less what chance would
        count, resemble x xᵀ. That has no sign: the sum of numbers returned is positive.
        """
        if self.factors != 2:
            return None
        size = int(key[0].max()) + 1
        pairs = key[0][:, 0] * size + key[0][:, 1]
        won = pairs.gather(1, codes.long().T).T
        counts = torch.zeros(len(codes), size**2, dtype=torch.float64, device=codes.device)
        counts.scatter_add_(1, won, torch.ones_like(won, dtype=counts.dtype))
        expected = pairs.flatten().bincount(minlength=size**2) / self.window
        square = (counts - expected).unflatten(1, (size, size))
        main = torch.linalg.eigh(square + square.mT).eigenvectors[:, :, -1].to(codes)
        return main * main.sum(1, keepdim=True).sign()

    def _largest(self, x: Tensor, positions: Tensor) -> Tensor:
        return self._products(x, positions).argmax(1).T.float()

    def _products(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return products (indices, window, N)."""
        # Numbers of one position of all templates lie together, so a gather copies whole rows.
        columns = x.T.contiguous()
        product = columns.index_select(0, positions[:, 0].flatten())
        for factor in range(1, self.factors):
            product = product * columns.index_select(0, positions[:, factor].flatten())
        return product.unflatten(0, (self.indices, self.window))

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the share of equal indices in [0, 1]."""
        return share_of_equal(probes, references)

    def code_bytes(self, size: int) -> float:
        """Return the bytes of packed indices."""
        return size * math.ceil(math.log2(self.window)) / 8
