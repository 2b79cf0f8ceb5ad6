"""Linear inversion of a template: the floor of every learned decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.base import Attack
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat


@ATTACKS.register("linear")
@dataclass
class Linear(Attack):
    """Ridge regression from templates or codes to pixels, in closed form.

    Reads templates. Needs records of own images.

    Args:
        ridge: Penalty on squared weights, relative to the mean variance of a template's numbers
            times the number of images.
    """

    leaks = frozenset({Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER, Threat.QUERY})

    ridge: Annotated[float, Field(gt=0)] = 0.3

    def fit(self, attacker: Attacker) -> None:
        """Solve the normal equations over all of the attacker's pairs."""
        pairs = attacker.pairs()
        records = torch.cat([pair.records.to(attacker.device).double() for pair in pairs])
        images = torch.cat([pair.images for pair in pairs]).flatten(1).double()
        self.record_mean, self.image_mean = records.mean(0), images.mean(0)
        x, y = records - self.record_mean, images - self.image_mean
        penalty = self.ridge * x.square().sum() / x.shape[1]
        # Of two equal solutions the one with the smaller system; a ciphertext has 16,384 numbers.
        wide = x.shape[1] > len(x)
        gram, wanted = (x @ x.T, y) if wide else (x.T @ x, x.T @ y)
        identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        solved = torch.linalg.solve(gram + penalty * identity, wanted)
        self.factors = (x.T, solved) if wide else (solved,)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the predicted images, clamped to [0, 1]."""
        made = records.double() - self.record_mean
        for factor in self.factors:
            made = made @ factor
        return (made + self.image_mean).clamp(0, 1).float().unflatten(1, (3, 112, 112))
