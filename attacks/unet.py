"""U-Net inversion of feature maps and image-like records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from attacks.base import Attack
from attacks.losses import Weights, mixture
from bench.leaks import Leak
from bench.networks import MAP_NETWORKS, channel_statistics, half_precision
from bench.registry import ATTACKS
from bench.threats import Attacker, Pairs, Threat
from bench.training import train


@ATTACKS.register("unet")
@dataclass
class UNet(Attack):
    """A network of convolutions trained from records to images.

    The attack of the MinusFace and PartialFace papers, by default at a size that a CPU trains.
    Under `adaptive` it trains over all fresh instances of the defense, that is, in expectation over
    the secrets that it does not know.

    Args:
        network: "small", a U-Net from 56x56 down to 28x28; "residual", blocks that keep 56x56;
            "full", a U-Net of five scales from 112x112. A defense that was made against one of
            them meets another architecture in the others.
        losses: Weights of pixel, ssim, perceptual, identity and adversarial losses.
        width: Channels at the largest scale.
        steps: Training steps of 32 images each; with several instances the same number is shared.
        rate: Largest learning rate of the one-cycle schedule.
    """

    leaks = frozenset({Leak.IMAGE, Leak.FEATURES})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER, Threat.QUERY})

    network: Literal["small", "residual", "full"] = "small"
    losses: Weights = field(default_factory=lambda: {"pixel": 1.0})
    width: Annotated[int, Field(ge=4)] = 24
    steps: Annotated[int, Field(ge=1)] = 200
    rate: Annotated[float, Field(gt=0)] = 2e-3

    def fit(self, attacker: Attacker) -> None:
        """Train on all of the attacker's pairs."""
        self.device = attacker.device
        pairs = attacker.pairs()
        self.fit_inverter(attacker, pairs, *channel_statistics(pairs[0].records))

    def fit_inverter(
        self, attacker: Attacker, pairs: list[Pairs], mean: Tensor, deviation: Tensor
    ) -> None:
        """Train the network on pairs, given the mean and deviation (C,) of their channels."""
        shape = pairs[0].records.shape[1:]
        self.inverter = train(
            MAP_NETWORKS[self.network](shape, self.width, mean, deviation),
            pairs,
            steps=self.steps,
            rate=self.rate,
            loss=mixture(self.losses, attacker),
            device=attacker.device,
        )

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the network's images."""
        with torch.no_grad(), half_precision(self.device):
            images: Tensor = self.inverter(records)
        return images
