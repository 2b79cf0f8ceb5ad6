"""Natural evolution strategies: a gradient estimated from pairs of opposite changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.blind import Blind, Likeness
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Threat


@ATTACKS.register("nes")
@dataclass
class NES(Blind):
    """Adam along a gradient estimated by finite differences (Ilyas et al., ICML 2018).

    Needs own images and match scores or queries. Every step asks for pairs of faces in opposite
    directions, orthogonal to one another.

    Args:
        calls: Calls for each leaked record, the first half of them at most for own images; under
            `query` the records of own images are asked for once.
        components: Principal components that span the faces searched.
        prior: Weight of the mean squared component, in deviations.
        pairs: Pairs of opposite directions in a step.
        distance: Length of a change, in deviations of a component.
        rate: Learning rate of Adam, which falls to 0 along a cosine.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.QUERY, Threat.SCORE})

    pairs: Annotated[int, Field(ge=1)] = 10
    distance: Annotated[float, Field(gt=0)] = 0.5
    rate: Annotated[float, Field(gt=0)] = 0.2

    def search(self, start: Tensor, likeness: Likeness, calls: int) -> Tensor:
        """Return where the last step ended."""
        z = start.clone().requires_grad_()
        pairs = min(self.pairs, start.shape[1], max(1, calls // 2))
        steps = calls // (2 * pairs)
        optimizer = torch.optim.Adam([z], lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        for _ in range(steps):
            z.grad = -self._gradient(z.detach(), likeness, pairs)
            optimizer.step()
            schedule.step()
        return z.detach()

    def _gradient(self, z: Tensor, likeness: Likeness, pairs: int) -> Tensor:
        count, size = z.shape
        directions = torch.linalg.qr(torch.randn(count, size, pairs, device=z.device)).Q.mT
        change = self.distance * torch.cat([directions, -directions], 1)  # (N, 2 pairs, K)
        rows = torch.arange(count, device=z.device).repeat_interleave(2 * pairs)
        answers = likeness(rows, (z[:, None] + change).flatten(0, 1)).reshape(count, 2, pairs)
        slope = (answers[:, 0] - answers[:, 1]) / (2 * self.distance)
        return (slope[:, None] @ directions)[:, 0]
