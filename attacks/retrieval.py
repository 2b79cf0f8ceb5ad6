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

# Records that are centered at once: a copy of all would take their memory again.
BLOCK = 64


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
        """Keep the records of the attacker's images, as they lie: block-DCT ones fill gigabytes."""
        pairs = attacker.pairs()
        pools = [pair.records.flatten(1) for pair in pairs]
        self.images = torch.cat([pair.images for pair in pairs])
        self.mean = torch.stack([pool.sum(0) for pool in pools]).sum(0) / len(self.images)
        self.blocks = [block for pool in pools for block in pool.split(BLOCK)]

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the image of the nearest record."""
        wanted = self._direction(records.flatten(1).to(self.mean.device))
        likeness = [wanted @ self._direction(block).T for block in self.blocks]
        return self.images[torch.cat(likeness, 1).argmax(1).to(self.images.device)]

    def _direction(self, records: Tensor) -> Tensor:
        return functional.normalize(records - self.mean, dim=1)
