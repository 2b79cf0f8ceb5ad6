"""Retrieval: show the attacker's own image whose record is nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat


@ATTACKS.register("retrieval")
@dataclass
class Retrieval(Attack):
    """Nearest of the attacker's own images, by cosine of centered records.

    The cheapest attack there is: whatever it scores, a reconstruction must beat. Needs records of
    own images; trains nothing.
    """

    leaks = frozenset({Leak.IMAGE, Leak.FEATURES, Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER, Threat.QUERY})

    def fit(self, attacker: Attacker) -> None:
        """Keep the records of the attacker's images."""
        pairs = attacker.pairs()
        self.images = torch.cat([pair.images for pair in pairs])
        records = torch.cat([pair.records.flatten(1) for pair in pairs])
        self.mean = records.mean(0)
        self.records = functional.normalize(records - self.mean, dim=1)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the image of the nearest record."""
        wanted = records.flatten(1).to(self.records.device) - self.mean
        nearest = (functional.normalize(wanted, dim=1) @ self.records.T).argmax(1)
        return self.images[nearest.to(self.images.device)]
