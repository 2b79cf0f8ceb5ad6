"""Inversion of block-DCT records by least squares, then by a network that mends what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from attacks.dct_inverse import DCTInverse
from bench.leaks import Leak
from bench.networks import MapDecoder, channel_statistics, half_precision
from bench.registry import ATTACKS
from bench.threats import Attacker, Pairs, Threat
from bench.training import train

BATCH = 16
"""Records inverted at once."""


class Mending(nn.Module):
    """A network from images to images that adds to them; before it learns it adds nothing.

    Args:
        painter: Makes images in [0, 1], which stand for changes from -1 to 1.
    """

    def __init__(self, painter: MapDecoder) -> None:
        super().__init__()
        self.painter = painter
        nn.init.zeros_(painter.paint.get_parameter("0.weight"))
        nn.init.zeros_(painter.paint.get_parameter("0.bias"))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) in [0, 1] to mended ones."""
        return (images + 2 * self.painter(images) - 1).clamp(0, 1)


@ATTACKS.register("dct-refine")
@dataclass
class DCTRefine(DCTInverse):
    """The closed-form inverse of the attacker's own records, and a U-Net from there to the images.

    The enhanced attacker of the PartialFace paper has one network per subset and order of channels.
    Here the residual tells which a record has, least squares brings all of them into one form, the
    image, and one small network learns what noise and dropped channels have left of it.

    Args:
        iterations: Steps of conjugate gradients, as in `dct-inverse`; few, since the network mends.
        trial: Steps that tell the hypotheses about a record's channels apart.
        width: Channels of the network at 56x56.
        steps: Training steps of 32 images each.
        rate: Largest learning rate of the one-cycle schedule.
    """

    leaks = frozenset({Leak.IMAGE})
    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    iterations: Annotated[int, Field(ge=1)] = 40
    trial: Annotated[int, Field(ge=1)] = 4
    width: Annotated[int, Field(ge=4)] = 24
    steps: Annotated[int, Field(ge=1)] = 200
    rate: Annotated[float, Field(gt=0)] = 2e-3

    def fit(self, attacker: Attacker) -> None:
        """Invert the attacker's own records, and train the network from there to its images."""
        super().fit(attacker)
        self.device = attacker.device
        pairs = [self._inverted(pool) for pool in attacker.pairs()]
        mean, deviation = channel_statistics(pairs[0].records)
        network = Mending(MapDecoder(pairs[0].records.shape[1:], self.width, mean, deviation))
        self.network = train(network, pairs, steps=self.steps, rate=self.rate, device=self.device)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return what the network makes of the inverse."""
        inverse = super().reconstruct(records)
        with torch.no_grad(), half_precision(self.device):
            images: Tensor = self.network(inverse)
        return images

    def _inverted(self, pool: Pairs) -> Pairs:
        parts = [
            super(DCTRefine, self).reconstruct(part.to(self.device)).to(part)
            for part in pool.records.split(BATCH)
        ]
        return replace(pool, records=torch.cat(parts))
