"""Feasibility inversion: an image whose feature map the recogniser takes for the record."""

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
    """Gradient descent on pixels until the recogniser cannot tell the image's map from the record.

    Protected maps are matched through the recogniser's own tail, so what the tail reads of them
    must still be the person's. Maps are compared behind its first convolution over neighbours,
    where records stand out further than as they are stored; nothing need be known of the defense.
    Nothing is trained, so a direction of the noise that misleads decoders misleads nobody.

    An attacker that knows the defense also measures the size of the noise on records of its own.
    Noise in a ball leaves the clean map inside the same ball around the record, and few images have
    a map there. The radius of a channel is 0, and not used, where noise has no bound, such as
    Gaussian noise. A cell of a quantiser is a ball, too.

    x = argmin |first(head(x)) - first(record)| + sum relu(|head(x) - record| - radius), in
    deviations of a channel, with a little total variation. The search starts at the mean of own
    images and moves the layers of an image pyramid, with Adam. Probes do not influence each other.

    Args:
        steps: Optimiser steps; each is one forward and one backward pass of the recogniser's head.
        rate: Learning rate for pixels in [0, 1]; it falls to 0 along a cosine.
        smooth: Weight of the total variation of what is added to the mean face.
    """

    leaks = frozenset({Leak.FEATURES})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER})

    steps: Annotated[int, Field(ge=0)] = 80
    rate: Annotated[float, Field(gt=0)] = 0.01
    smooth: Annotated[float, Field(ge=0)] = 2.0

    def fit(self, attacker: Attacker) -> None:
        """Learn the mean face, how maps vary, and how far records lie from them."""
        self.recognizer = attacker.recognizer
        clean = attacker.clean(attacker.images[:MEASURED])
        self.start = attacker.images.mean(0)
        self.deviation = deviation(clean)
        self.reading_deviation = self._reading_deviation(clean)
        self.radius = torch.zeros_like(self.deviation)
        if attacker.threat is not Threat.TRANSFER:
            own = [pair.records[:MEASURED].to(clean) for pair in attacker.pairs()]
            noise = torch.cat([(records - clean) / self.deviation for records in own])
            self.radius = ball(noise).reshape(-1, 1, 1)

    @torch.no_grad()
    def _reading_deviation(self, maps: Tensor) -> Tensor:
        """Return how what the tail first makes of maps varies; 1 where it makes nothing of them."""
        found = [self.recognizer.first_reading(part) for part in maps.split(BATCH)]
        readings = [part for part in found if part is not None]
        return deviation(torch.cat(readings)) if readings else torch.ones(())

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
        with torch.no_grad():
            reading = self.recognizer.first_reading(records)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.rate * falling(step / self.steps)
            optimizer.zero_grad()
            with torch.enable_grad():
                change = flattened(layers)
                found = self.recognizer.head((self.start + change).clamp(0, 1))
                loss = self._unlike(found, records, reading) + self.smooth * total_variation(change)
                # A sum over probes: each has its own gradient, whatever else is in the batch.
                loss.sum().backward()
            optimizer.step()
        with torch.no_grad():
            return (self.start + flattened(layers)).clamp(0, 1)

    def _unlike(self, maps: Tensor, records: Tensor, reading: Tensor | None) -> Tensor:
        """Return how far (N,) maps are from what the records allow."""
        found = self.recognizer.first_reading(maps)
        if reading is None or found is None:
            return self._outside(maps, records).mean((1, 2, 3))
        loss = ((found - reading) / self.reading_deviation).abs().mean((1, 2, 3))
        # Where noise has no bound, the map itself says less than what the tail reads of it.
        if self.radius.any():
            loss = loss + (self._outside(maps, records) * (self.radius > 0)).mean((1, 2, 3))
        return loss

    def _outside(self, maps: Tensor, records: Tensor) -> Tensor:
        """Return the way (N, C, H, W) from maps to the ball around records, in deviations."""
        return (((maps - records) / self.deviation).abs() - self.radius).clamp_min(0)


def deviation(maps: Tensor) -> Tensor:
    """Return the deviation of each channel of maps (N, C, H, W), as (C, 1, 1)."""
    return channel_statistics(maps)[1].clamp_min(1e-6).reshape(-1, 1, 1)


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
