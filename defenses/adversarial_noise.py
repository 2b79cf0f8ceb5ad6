"""Noise that is computed for each record, and the random noise of the same size beside it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bench.leaks import Leak
from bench.networks import channel_statistics
from defenses.base import Defender, Defense, draw_like


@dataclass
class AdversarialNoise(Defense):
    """A defense that adds noise in a direction of its own choice to each feature map.

    Args:
        control: "none" for the noise itself. Controls show whether its direction matters: "l2" adds
            Gaussian noise of the same length, spread over channels by their deviation; "linf" adds
            random signs, as large in every channel as the noise's largest number there.
    """

    leaks = frozenset({Leak.FEATURES})

    control: Literal["none", "l2", "linf"] = "none"

    @abstractmethod
    def learn(self, world: Defender, maps: Tensor) -> None:
        """Learn the secrets from the defender's maps (N, C, H, W); statistics are known."""

    @abstractmethod
    def noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noise (N, C, H, W) for maps x.

        Args:
            x: (N, C, H, W) clean maps.
            generator: CPU generator of all randomness.
        """

    def fit(self, world: Defender) -> None:
        """Measure the (C,) deviation of every channel, which is no secret, and learn the rest."""
        maps = world.recognizer.leaking(Leak.FEATURES, world.images)
        self.mean, self.deviation = channel_statistics(maps)
        self.learn(world, maps)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return maps with noise, (N, C, H, W)."""
        noise = self.noise(x, generator)
        match self.control:
            case "l2":
                drawn = draw_like(x, generator) * self.deviation.reshape(-1, 1, 1)
                noise = drawn * (_length(noise) / _length(drawn).clamp_min(1e-12))
            case "linf":
                noise = draw_like(x, generator, "sign") * noise.abs().amax((2, 3), keepdim=True)
        return x + noise


def _length(noise: Tensor) -> Tensor:
    return noise.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
