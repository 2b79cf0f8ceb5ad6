"""Closed-form inversion of block-DCT records."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat
from defenses.frequency import block_dct
from defenses.frequency.dct_drop_dc import KEPT


@ATTACKS.register("dct-inverse")
@dataclass
class DCTInverse(Attack):
    """Least squares: the block DCT is linear and over-complete, so its inverse needs no training.

    Knows which channels were dropped. The mean brightness of each color, which no kept channel
    holds, is predicted by ridge regression from the rest of the image, on the attacker's own.
    """

    leaks = frozenset({Leak.IMAGE})
    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    def fit(self, attacker: Attacker) -> None:
        """Learn to predict the mean of an image from its centered pixels."""
        x = _coarse(_centered(attacker.images)).double()
        y = attacker.images.mean((2, 3)).double()
        self.center = y.mean(0)
        gram = x @ x.T
        penalty = 1e-2 * gram.diagonal().mean()
        identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
        self.weights = x.T @ torch.linalg.solve(gram + penalty * identity, y - self.center)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the inverse with the predicted mean, clamped to [0, 1]."""
        shape = _centered(block_dct.inverse(records, KEPT))
        mean = _coarse(shape).double() @ self.weights + self.center
        return (shape + mean[:, :, None, None].float()).clamp(0, 1)


def _centered(images: Tensor) -> Tensor:
    return images - images.mean((2, 3), keepdim=True)


def _coarse(images: Tensor) -> Tensor:
    return functional.avg_pool2d(images, 4).flatten(1)
