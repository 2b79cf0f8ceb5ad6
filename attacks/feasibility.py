"""Feasibility inversion: an image whose feature map lies within the noise of the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.base import Attack
from attacks.gradient import falling
from bench.leaks import Leak
from bench.networks import channel_statistics
from bench.recognizers.base import BATCH
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat

SIDES = (7, 14, 28, 56, 112)
"""Sizes of the layers of an image pyramid: coarse ones move whole regions of a face at once."""

INSIDE = 0.99
"""Share of the numbers of own records in the ball: a few that are clipped must not widen it."""

MEASURED = 256
"""Own records of each instance that show the size of the noise: each has thousands of numbers."""


@ATTACKS.register("feasibility")
@dataclass
class Feasibility(Attack):
    """Gradient descent on pixels until the image's own map lies in the ball around the record.

    Noise in a ball of known size leaves the clean map inside the same ball around the record, and
    few images have a map there: x = argmin sum relu(|head(x) - record| - radius), in deviations of
    a channel, with a little total variation. Nothing is trained, so a direction of the noise that
    misleads decoders misleads nobody. The attacker measures the radius of each channel on records
    of its own. It is 0 under `transfer`, where a record is taken for a clean map, and where noise
    has no bound, such as Gaussian noise. A cell of a quantiser is a ball, too.

    The search starts at the mean of own images and moves the layers of an image pyramid, with Adam.
    Probes do not influence each other.

    Args:
        steps: Optimiser steps; each is one forward and one backward pass of the recogniser's head.
        rate: Learning rate for pixels in [0, 1]; it falls to 0 along a cosine.
        smooth: Weight of the total variation of what is added to the mean face.
    """

    leaks = frozenset({Leak.FEATURES})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER})

    steps: Annotated[int, Field(ge=0)] = 60
    rate: Annotated[float, Field(gt=0)] = 0.01
    smooth: Annotated[float, Field(ge=0)] = 1.0

    def fit(self, attacker: Attacker) -> None:
        """Learn the mean face, how maps vary, and how far records lie from them."""
        self.recognizer = attacker.recognizer
        clean = attacker.clean(attacker.images[:MEASURED])
        self.start = attacker.images.mean(0)
        self.deviation = channel_statistics(clean)[1].clamp_min(1e-6).reshape(-1, 1, 1)
        self.radius = torch.zeros_like(self.deviation)
        if attacker.threat is not Threat.TRANSFER:
            own = [pair.records[:MEASURED].to(clean) for pair in attacker.pairs()]
            noise = torch.cat([(records - clean) / self.deviation for records in own])
            self.radius = ball(noise).reshape(-1, 1, 1)

    def reconstruct(self, records: Tensor) -> Tensor:
        """Return the images found."""
        # Batches that fit in the processor's cache are faster than all probes at once.
        return torch.cat([self._search(part) for part in records.split(BATCH)])

    def _search(self, records: Tensor) -> Tensor:
        layers = [
            torch.zeros(len(records), 3, side, side, device=records.device, requires_grad=True)
            for side in SIDES
        ]
        optimizer = torch.optim.Adam(layers, lr=self.rate)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.rate * falling(step / self.steps)
            optimizer.zero_grad()
            with torch.enable_grad():
                change = flattened(layers)
                found = self.recognizer.head((self.start + change).clamp(0, 1))
                away = ((found - records) / self.deviation).abs()
                outside = (away - self.radius).clamp_min(0).mean((1, 2, 3))
                # A sum over probes: each has its own gradient, whatever else is in the batch.
                (outside + self.smooth * total_variation(change)).sum().backward()
            optimizer.step()
        with torch.no_grad():
            return (self.start + flattened(layers)).clamp(0, 1)


def ball(noise: Tensor) -> Tensor:
    """Return the radius (C,) of the ball that holds noise (N, C, H, W), 0 where it has no bound.

    Noise counts as bounded where its largest numbers are no more than twice as large as usual:
    random signs are equally large, uniform noise reaches 1.7 times its deviation, and 1 in 100
    Gaussian numbers exceeds 2.6 deviations.
    """
    channels = noise.transpose(0, 1).flatten(1).abs()
    usual = channels.square().mean(1).sqrt()
    place = max(1, round(INSIDE * channels.shape[1]))
    largest = channels.kthvalue(place, dim=1).values
    return torch.where(largest <= 2 * usual, largest, 0.0)


def flattened(layers: list[Tensor]) -> Tensor:
    """Return the sum (N, 3, 112, 112) of the layers of image pyramids (N, 3, side, side)."""
    *coarse, fine = layers
    larger = [functional.interpolate(layer, fine.shape[2:], mode="bilinear") for layer in coarse]
    return torch.stack([*larger, fine]).sum(0)


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference (N,) of neighbouring pixels, both ways added."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((1, 2, 3))
    return across + down
