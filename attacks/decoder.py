"""Transposed-convolution decoder of templates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attacks.base import Attack
from attacks.losses import Weights, mixture
from bench.leaks import Leak
from bench.networks import EigenfaceDecoder, TemplateDecoder, half_precision
from bench.registry import ATTACKS
from bench.threats import Attacker, Pairs, Threat
from bench.training import train


@ATTACKS.register("decoder")
@dataclass
class Decoder(Attack):
    """A network trained from templates to images.

    Its convolutions are a small relative of NbNet (Mai et al., TPAMI 2019) and of the Idiap decoder
    (ICIP 2022). They need more people than ORL has: with 20 of them they do not beat the mean face.

    Args:
        network: "convolutions", transposed; or "eigenfaces", an affine map to the principal
            components of the attacker's images that starts in closed form.
        losses: Weights of pixel, ssim, perceptual, identity and adversarial losses.
        width: Channels of the convolutions at 28x28.
        components: Principal components of the eigenfaces.
        steps: Training steps.
        batch: Images of a step.
        rate: Largest learning rate of the one-cycle schedule.
    """

    leaks = frozenset({Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER, Threat.QUERY})

    network: Literal["convolutions", "eigenfaces"] = "convolutions"
    losses: Weights = field(default_factory=lambda: {"pixel": 1.0})
    width: Annotated[int, Field(ge=8)] = 32
    components: Annotated[int, Field(ge=1)] = 150
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
        self._trained = train(
            self._untrained(pools),
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
            images: Tensor = self._trained(self._scaled(records))
        return images

    def _untrained(self, pools: list[Pairs]) -> nn.Module:
        if self.network == "convolutions":
            return TemplateDecoder(pools[0].records.shape[1], self.width)
        images = pools[0].images
        records = torch.stack([pool.records for pool in pools]).to(images.device)
        return EigenfaceDecoder(records, images, self.components)

    def _scaled(self, records: Tensor) -> Tensor:
        return (records - self.mean.to(records.device)) / self.deviation.to(records.device)
