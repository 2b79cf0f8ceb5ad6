"""Zeroth-order search from the nearest own faces, as MAP2V does it."""

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


@ATTACKS.register("map2v")
@dataclass
class MAP2V(Blind):
    """One-sided finite differences and Adam, keeping the best face (Zhang et al., CVPR 2024).

    Needs own images and match scores or queries. The paper searches the latent space of StyleGAN
    with 7,300 queries for a record; here the space is that of principal components of own images,
    and the budget a parameter.

    Args:
        calls: Calls for each leaked record, the first half of them at most for own images; under
            `query` the records of own images are asked for once.
        components: Principal components that span the faces searched.
        prior: Weight of the mean squared component, in deviations.
        directions: Random unit directions in a step.
        distance: Length of a change, in deviations of a component.
        rate: Learning rate of Adam.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.QUERY, Threat.SCORE})

    directions: Annotated[int, Field(ge=1)] = 16
    distance: Annotated[float, Field(gt=0)] = 0.5
    rate: Annotated[float, Field(gt=0)] = 0.15

    def search(self, start: Tensor, likeness: Likeness, calls: int) -> Tensor:
        """Return the best of the faces that a step started from."""
        count, size = start.shape
        per_step = min(self.directions, size, calls - 1) + 1
        rows = torch.arange(count, device=start.device).repeat_interleave(per_step)
        z = start.clone().requires_grad_()
        best, value = start, torch.full((count, 1), -torch.inf, device=start.device)
        optimizer = torch.optim.Adam([z], lr=self.rate)
        for _ in range(calls // per_step):
            here = z.detach()[:, None]
            directions = torch.randn(count, per_step - 1, size, device=start.device)
            directions = directions / directions.norm(dim=2, keepdim=True)
            tried = torch.cat([here, here + self.distance * directions], 1).flatten(0, 1)
            answers = likeness(rows, tried).reshape(count, per_step)
            now = answers[:, :1]
            best = torch.where(now > value, here[:, 0], best)
            value = torch.maximum(now, value)
            slope = (answers[:, 1:] - now) / self.distance
            z.grad = -(slope[:, None] @ directions)[:, 0]
            optimizer.step()
        return best
