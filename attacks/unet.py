"""U-Net inversion of feature maps and image-like records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.base import Attack
from bench.leaks import Leak
from bench.networks import MapDecoder, channel_statistics, half_precision
from bench.registry import ATTACKS
from bench.threats import Attacker, Pairs, Threat
from bench.training import train


@ATTACKS.register("unet")
@dataclass
class UNet(Attack):
    """A small U-Net trained from records to images with an L1 loss.

    The attack of the MinusFace and PartialFace papers, at a size that a CPU trains. Under
    `adaptive` it trains over all fresh instances of the defense, that is, in expectation over the
    secrets that it does not know.

    Args:
        width: Channels at 56x56.
        steps: Training steps of 32 images each; with several instances the same number is shared.
        rate: Largest learning rate of the one-cycle schedule.
    """

    leaks = frozenset({Leak.IMAGE, Leak.FEATURES})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER, Threat.QUERY})

    width: Annotated[int, Field(ge=4)] = 24
    steps: Annotated[int, Field(ge=1)] = 200
    rate: Annotated[float, Field(gt=0)] = 2e-3

    def fit(self, attacker: Attacker) -> None:
        """Train on all of the attacker's pairs."""
        self.device = attacker.device
        pairs = attacker.pairs()
        self.fit_inverter(pairs, *channel_statistics(pairs[0].records))

    def fit_inverter(self, pairs: list[Pairs], mean: Tensor, deviation: Tensor) -> None:
        """Train the network on pairs, given the mean and deviation (C,) of their channels."""
        network = MapDecoder(pairs[0].records.shape[1:], self.width, mean, deviation)
        self.network = train(network, pairs, steps=self.steps, rate=self.rate, device=self.device)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the network's images."""
        with torch.no_grad(), half_precision(self.device):
            images: Tensor = self.network(records)
        return images
