"""DuetFace: high frequencies to the server, low ones to a model of the client's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.networks import channel_statistics
from bench.registry import DEFENSES
from defenses.adapted import STEM_IMAGES, Adapted, Server, regress_stem
from defenses.base import Defender
from defenses.frequency import block_dct

CLIENT = (0, 1, 2, 3, 4, 5, 8, 9, 16, 24)
"""Channels of a color that stay with the client."""

SERVER = tuple(channel for channel in block_dct.ALL if channel not in CLIENT)


@DEFENSES.register("duetface")
@dataclass
class DuetFace(Adapted):
    """DuetFace (Mi et al., MM 2022, arXiv 2207.07340): 54 channels per color and a face mask.

    Leaks: image. The client keeps the ten low frequencies of every color, runs a small model on
    them, and sends the server the others with a mask of where that model looks. Secrets: the
    client's model, of little worth, as it follows from the recogniser and any faces. Here it is the
    recogniser's first convolution on the low frequencies, and the mask, the mean of its magnitudes
    between 0 and 1, reaches the server's first convolution as one more channel; the paper trains a
    MobileFaceNet, cuts its mask to the hull of the landmarks, and mixes it in at four stages. Known
    weakness: what is sent determines the image but for a few smooth directions (rank 195 of 196 on
    14 x 14 pixels).
    """

    leaks = frozenset({Leak.IMAGE})

    def fit(self, world: Defender) -> None:
        """Regress the client's first convolution on the low frequencies."""
        super().fit(world)

        def low(images: Tensor) -> Tensor:
            return block_dct.forward(images, CLIENT)

        statistics = channel_statistics(low(world.images[:STEM_IMAGES]))
        self.client = Server(world.recognizer, *statistics).to(world.device).requires_grad_(False)
        regress_stem(self.client, low, world.images, world.generator())

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 163, 112, 112): 162 coefficients, color by color, and the mask."""
        return torch.cat([block_dct.forward(x, SERVER), self._mask(x)], 1)

    def hypotheses(self) -> list[list[int]]:
        """Return the channels of a color that a record may hold, in order."""
        return [list(SERVER)]

    def _mask(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            low = self.client.standardize(block_dct.forward(images, CLIENT))
            seen = functional.relu(self.client.stem(low)).mean(1, keepdim=True)
        floor, top = seen.amin((2, 3), keepdim=True), seen.amax((2, 3), keepdim=True)
        return (seen - floor) / (top - floor).clamp_min(1e-6)
