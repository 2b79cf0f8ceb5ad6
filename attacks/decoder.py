"""Transposed-convolution decoder of templates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from attacks.base import Attack
from attacks.losses import Weights, mixture
from bench.leaks import Leak
from bench.networks import TemplateDecoder, half_precision
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat
from bench.training import train


@ATTACKS.register("decoder")
@dataclass
class Decoder(Attack):
    """Transposed convolutions trained from templates to images.

    A small relative of NbNet (Mai et al., TPAMI 2019) and the Idiap decoder (ICIP 2022). It needs
    more people than ORL has: with 20 of them it does not beat the mean face.

    Args:
        losses: Weights of pixel, ssim, perceptual, identity and adversarial losses.
        width: Channels at 28x28.
        steps: Training steps.
        batch: Images of a step.
        rate: Largest learning rate of the one-cycle schedule.
    """

    leaks = frozenset({Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER, Threat.QUERY})

    losses: Weights = field(default_factory=lambda: {"pixel": 1.0})
    width: Annotated[int, Field(ge=8)] = 32
    steps: Annotated[int, Field(ge=1)] = 300
    batch: Annotated[int, Field(ge=2)] = 32
    rate: Annotated[float, Field(gt=0)] = 2e-3

    def fit(self, attacker: Attacker) -> None:
        """Train on all of the attacker's pairs."""
        self.device = attacker.device
        pairs = attacker.pairs()
        deviation, self.mean = torch.std_mean(pairs[0].records.float(), dim=0)
        self.deviation = deviation.mean()
        pools = [replace(pair, records=self._scaled(pair.records)) for pair in pairs]
        network = TemplateDecoder(pairs[0].records.shape[1], self.width)
        self.network = train(
            network,
            pools,
            steps=self.steps,
            rate=self.rate,
            loss=mixture(self.losses, attacker),
            batch=self.batch,
            device=attacker.device,
        )

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the network's images."""
        with torch.no_grad(), half_precision(self.device):
            images: Tensor = self.network(self._scaled(records))
        return images

    def _scaled(self, records: Tensor) -> Tensor:
        return (records - self.mean.to(records.device)) / self.deviation.to(records.device)
