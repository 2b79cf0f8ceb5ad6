"""Denoising: regress the clean map from the protected one, then invert it as if undefended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from attacks.unet import UNet
from bench.leaks import Leak
from bench.networks import Standardize, channel_statistics, half_precision
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat
from bench.training import train


class Purifier(nn.Module):
    """Residual convolutions from a protected map to the clean one, in deviations of a channel."""

    def __init__(self, channels: int, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.standardize = Standardize(mean, deviation)
        self.change = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, records: Tensor) -> Tensor:
        """Map protected maps (N, C, H, W) to clean ones."""
        x = self.standardize(records).contiguous(memory_format=torch.channels_last)
        return self.standardize.undo((x + self.change(x)).float())


@ATTACKS.register("denoise")
@dataclass
class Denoise(UNet):
    """A purifying network from protected to clean maps, then the `unet` trained on clean maps.

    Args:
        network: Architecture of the inverter, as in `unet`.
        losses: Weights of the inverter's losses; the purifier has its own.
        width: Channels of the inverter at the largest scale.
        steps: Training steps of each of the two networks.
        rate: Largest learning rate.
    """

    leaks = frozenset({Leak.FEATURES})
    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    width: Annotated[int, Field(ge=4)] = 24

    def fit(self, attacker: Attacker) -> None:
        """Train the purifier on (protected, clean) pairs and the inverter on (clean, image)."""
        self.device = attacker.device
        clean = attacker.clean_pairs()
        mean, deviation = channel_statistics(clean.records)
        scale = deviation.clamp_min(1e-6).reshape(-1, 1, 1)
        self.purifier = train(
            Purifier(len(mean), mean, deviation),
            [replace(pair, images=clean.records) for pair in attacker.pairs()],
            steps=self.steps,
            rate=self.rate,
            loss=lambda made, wanted: functional.l1_loss(made / scale, wanted / scale),
            device=attacker.device,
        )
        self.fit_inverter(attacker, [clean], mean, deviation)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the images of the purified maps."""
        with torch.no_grad(), half_precision(self.device):
            purified = self.purifier(records)
        return super().reconstruct(purified)
