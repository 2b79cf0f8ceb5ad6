"""Closed-form inversion of block-DCT records."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.base import Attack
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat
from defenses.frequency import block_dct


@ATTACKS.register("dct-inverse")
@dataclass
class DCTInverse(Attack):
    """Least squares: the block DCT is linear and over-complete, so its inverse needs no training.

    Knows that the DC channels were dropped. Only the mean brightness of each color is lost; the
    attack takes the darkest pixel to be as dark as it is in the median of the attacker's images.
    """

    leaks = frozenset({Leak.IMAGE})
    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    def fit(self, attacker: Attacker) -> None:
        """Learn how dark the darkest pixel of a color usually is."""
        self.darkest = attacker.images.amin((2, 3)).median()

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the inverse at the usual brightness, clamped to [0, 1]."""
        images = block_dct.inverse_without_dc(records)
        above = images - images.amin((2, 3), keepdim=True)
        return (above + self.darkest).clamp(0, 1)
