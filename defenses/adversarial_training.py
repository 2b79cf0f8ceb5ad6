"""Defenses trained against a decoder that tries to show the face."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bench.leaks import Leak
from bench.networks import MapDecoder, channel_statistics, half_precision
from defenses.base import Defender, Defense


@dataclass
class AdversariallyTrained(Defense):
    """A layer behind the recogniser's head, trained to keep the embedding and to hide the image.

    In every step a decoder learns to make the image of the layer's output (L1), then the layer
    learns to spoil it: the loss is 1 - cosine of the recogniser's embedding to the clean one, less
    `weight` times the decoder's error. Head and tail of the recogniser stay as they are, so a fresh
    probe needs no protection. The papers train the whole encoder for a task of their own; here what
    is stored is a map, and recognition is the task.

    Args:
        weight: Weight of the decoder's error; 0 leaves the layer to recognition alone.
        steps: Training steps.
        batch: Images in a step.
        width: Channels of the decoder.
        rate: Learning rate of both.
    """

    leaks = frozenset({Leak.FEATURES})

    weight: Annotated[float, Field(ge=0)] = 2.0
    steps: Annotated[int, Field(ge=1)] = 100
    batch: Annotated[int, Field(ge=1)] = 16
    width: Annotated[int, Field(ge=4)] = 16
    rate: Annotated[float, Field(gt=0)] = 2e-3

    @abstractmethod
    def layer(self, channels: int) -> nn.Module:
        """Return the layer to be trained: maps (N, C, H, W) to maps of the same shape."""

    def fit(self, world: Defender) -> None:
        """Train layer and decoder in turn on the defender's images."""
        maps = world.recognizer.leaking(Leak.FEATURES, world.images)
        self.mean, self.deviation = channel_statistics(maps)
        self.network = self.layer(maps.shape[1]).to(world.device)
        decoder = MapDecoder(maps.shape[1:], self.width, self.mean, self.deviation)
        decoder.to(world.device)
        attack, hide = (
            torch.optim.Adam(module.parameters(), lr=self.rate)
            for module in (decoder, self.network)
        )
        for _ in range(self.steps):
            rows = torch.randint(len(maps), (self.batch,)).to(maps.device)
            clean, images = maps[rows], world.images[rows]
            made = self.network(clean)
            with half_precision(world.device):
                error = functional.l1_loss(decoder(made.detach()), images)
            attack.zero_grad()
            error.backward()
            attack.step()
            with half_precision(world.device):
                error = functional.l1_loss(decoder(made), images)
            with torch.no_grad():
                wanted = world.recognizer.tail(clean)
            lost = 1 - functional.cosine_similarity(world.recognizer.tail(made), wanted)
            hide.zero_grad()
            (lost.mean() - self.weight * error).backward()
            hide.step()
        self.network.eval().requires_grad_(False)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return the layer's maps, (N, C, H, W)."""
        made: Tensor = self.network(x)
        return made
