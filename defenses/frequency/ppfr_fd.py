"""PPFR-FD: high-frequency channels, shuffled and mixed per image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.adapted import Adapted
from defenses.frequency import block_dct

KEPT = tuple(channel for channel in block_dct.ALL if sum(divmod(channel, 8)) >= 7)
"""The 36 channels of a color with i + j >= 7."""


@DEFENSES.register("ppfr-fd")
@dataclass
class PPFRFD(Adapted):
    """PPFR-FD (Wang et al., AAAI 2022), re-implemented from its abstract and third parties' words.

    Leaks: image. 36 high-frequency channels per color (108 in all, as MinusFace states) are
    shuffled per image, every one is averaged with its neighbor in the new order, and each result is
    brought to mean 0 and deviation 1 ("fast masking", without keys). Secrets: the shuffle,
    drawn per record. Unverified: which channels an analysis network picks in the paper
    (here those of the highest frequencies) and the masking's exact formula. Known weakness: a
    network retrained on records; the mixing is linear and invertible once the order is known.
    """

    leaks = frozenset({Leak.IMAGE})

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 108, 112, 112) mixed channels."""
        made = block_dct.forward(x, KEPT)
        orders = torch.rand(made.shape[:2], generator=generator).argsort(1).to(x.device)
        shuffled = torch.stack([one[order] for one, order in zip(made, orders, strict=True)])
        mixed = (shuffled + shuffled.roll(1, 1)) / 2
        deviation, mean = torch.std_mean(mixed, (2, 3), keepdim=True)
        return (mixed - mean) / deviation.clamp_min(1e-6)
