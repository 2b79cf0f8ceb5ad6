"""Scrambled images under a key: the naive defense that every transform is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defender, Defense


@DEFENSES.register("block-shuffle")
@dataclass
class BlockShuffle(Defense):
    """Square blocks of pixels in a secret order; blocks of one pixel are a pixel permutation.

    Leaks: image. Secrets: the order, one per instance, which the server knows and undoes before it
    recognises. Known weaknesses: one order for all records, so an attacker with the key sees
    everything and one with a few pairs finds the key; large blocks show the face to anybody.

    Args:
        block: Side of a block in pixels.
    """

    leaks = frozenset({Leak.IMAGE})

    block: Literal[1, 2, 4, 7, 8, 14, 16, 28] = 8

    @property
    def plain_probes(self) -> bool:
        """A record looks like an image, so what is compared is always a record."""
        return False

    def fit(self, world: Defender) -> None:
        """Draw the order."""
        count = (112 // self.block) ** 2
        self.order = torch.randperm(count, generator=world.generator()).to(world.device)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 3, 112, 112) images with their blocks in the secret order."""
        return self._rearranged(x, self.order)

    def comparable(self, records: Tensor) -> Tensor:
        """Put the blocks back and embed."""
        return self.recognizer.embed(self._rearranged(records, self.order.argsort()))

    def _rearranged(self, x: Tensor, order: Tensor) -> Tensor:
        blocks = functional.unfold(x, self.block, stride=self.block)[:, :, order]
        return functional.fold(blocks, (112, 112), self.block, stride=self.block)
