"""Hill climbing on eigenfaces: a change is kept if the answer rises."""

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


@ATTACKS.register("hill-climb")
@dataclass
class HillClimb(Blind):
    """Random changes of a face, kept if it matches better (Adler, 2003).

    Needs own images and match scores or queries. The scale of the changes grows where one is kept
    and shrinks where it is not, so that about one in five is (Rechenberg's rule).

    Args:
        calls: Calls for each leaked record, the first half of them at most for own images; under
            `query` the records of own images are asked for once.
        components: Principal components that span the faces searched.
        prior: Weight of the mean squared component, in deviations.
        scale: Deviation of the first changes, in deviations of a component.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.QUERY, Threat.SCORE})

    scale: Annotated[float, Field(gt=0)] = 0.3

    def search(self, start: Tensor, likeness: Likeness, calls: int) -> Tensor:
        """Return the best faces found."""
        rows = torch.arange(len(start), device=start.device)
        best, scale = start, torch.full((len(start), 1), self.scale, device=start.device)
        value = likeness(rows, best)
        for _ in range(calls - 1):
            tried = best + scale * torch.randn_like(best)
            answer = likeness(rows, tried)
            better = (answer > value)[:, None]
            best = torch.where(better, tried, best)
            value = torch.maximum(answer, value)
            scale = scale * torch.where(better, 1.22, 0.95)
        return best
