"""CMA-ES: an evolution strategy that learns which changes go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from cmaes import CMA
from pydantic import Field
from torch import Tensor

from attacks.blind import Blind, Likeness
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Threat


@ATTACKS.register("cma-es")
@dataclass
class CMAES(Blind):
    """Covariance matrix adaptation (Hansen and Ostermeier, 2001), through the package `cmaes`.

    Needs own images and match scores or queries.

    Args:
        calls: Calls for each leaked record, the first half of them at most for own images; under
            `query` the records of own images are asked for once.
        components: Principal components that span the faces searched.
        prior: Weight of the mean squared component, in deviations.
        population: Faces in a generation.
        scale: Deviation of the first generation, in deviations of a component.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.QUERY, Threat.SCORE})

    population: Annotated[int, Field(ge=2)] = 20
    scale: Annotated[float, Field(gt=0)] = 0.3

    def search(self, start: Tensor, likeness: Likeness, calls: int) -> Tensor:
        """Return the means of the last generations, or the start if no generation is affordable."""
        seeds = torch.randint(2**31, (len(start),)).tolist()
        searches = [
            CMA(mean, self.scale, seed=seed, population_size=self.population)
            for mean, seed in zip(start.cpu().double().numpy(), seeds, strict=True)
        ]
        rows = torch.arange(len(start), device=start.device).repeat_interleave(self.population)
        for _ in range(calls // self.population):
            asked = np.stack([[s.ask() for _ in range(self.population)] for s in searches])
            z = torch.from_numpy(asked).to(start).flatten(0, 1)
            costs = -likeness(rows, z).double().cpu().numpy().reshape(len(start), -1)
            for one, tried, cost in zip(searches, asked, costs, strict=True):
                one.tell(list(zip(tried, cost.tolist(), strict=True)))
        return torch.from_numpy(np.stack([one.mean for one in searches])).to(start)
