"""Cloak: noise as large as recognition bears, learned for each number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.networks import channel_statistics
from bench.registry import DEFENSES
from defenses.base import Defender, Defense, draw_like


@DEFENSES.register("cloak")
@dataclass
class Cloak(Defense):
    """Gaussian noise of learned mean and scale (Mireshghallah et al., WWW 2021).

    The recogniser stays as it is. Mean mu and scale sigma of every number of the map are learned:
    the loss is 1 - cosine of the noisy embedding to the clean one, less `weight` times the mean
    logarithm of sigma. Numbers whose sigma ends near its limit are not needed and become a
    constant.

    Leaks: features. Secret: the draw, which nobody keeps; mu and sigma are learned and public to
    the insider. Known weakness: the mean over several records converges, and numbers that
    recognition needs stay readable. Source: facts of mireshghallah/cloak-www-21. There the noise is
    on the input image and the task is classification; here it is on the stored map.

    Args:
        weight: Weight of the mean log scale: more is more noise.
        smallest: Least scale, in deviations of the channel over the defender's images.
        largest: Largest scale, in the same unit.
        suppress: Numbers whose sigma exceeds this share of `largest` become constant; 1 keeps all.
        steps: Training steps.
        batch: Images in a step.
        rate: Learning rate.
    """

    leaks = frozenset({Leak.FEATURES})

    weight: Annotated[float, Field(ge=0)] = 1.0
    smallest: Annotated[float, Field(gt=0)] = 1e-4
    largest: Annotated[float, Field(gt=0)] = 1.5
    suppress: Annotated[float, Field(gt=0, le=1)] = 0.95
    steps: Annotated[int, Field(ge=1)] = 60
    batch: Annotated[int, Field(ge=1)] = 16
    rate: Annotated[float, Field(gt=0)] = 0.1

    def fit(self, world: Defender) -> None:
        """Learn mean and scale of the noise on the defender's images."""
        if self.smallest >= self.largest:
            raise ValueError(f"cloak needs smallest < largest = {self.largest}")
        maps = world.recognizer.leaking(Leak.FEATURES, world.images)
        mean, deviation = (part.reshape(-1, 1, 1) for part in channel_statistics(maps))
        # In the middle of its range sigma moves freely; at either end tanh is flat.
        rho = torch.zeros(maps.shape[1:], device=world.device, requires_grad=True)
        shift = torch.zeros(maps.shape[1:], device=world.device, requires_grad=True)
        optimizer = torch.optim.Adam([rho, shift], lr=self.rate)
        for _ in range(self.steps):
            clean = maps[torch.randint(len(maps), (self.batch,)).to(maps.device)]
            drawn = torch.randn(clean.shape).to(clean.device)
            scale = self._scale(rho)
            noisy = clean + deviation * (shift + scale * drawn)
            with torch.no_grad():
                wanted = world.recognizer.tail(clean)
            lost = 1 - functional.cosine_similarity(world.recognizer.tail(noisy), wanted)
            optimizer.zero_grad()
            (lost.mean() - self.weight * scale.log().mean()).backward()
            optimizer.step()
        learned = self._scale(rho.detach())
        self.shift, self.scale = deviation * shift.detach(), deviation * learned
        self.kept = (learned <= self.suppress * self.largest) | (self.suppress == 1)
        self.constant = (mean + self.shift).expand(maps.shape[1:])

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Add the noise, and write the constant where a number is not needed."""
        noisy = x + self.shift + self.scale * draw_like(x, generator)
        return torch.where(self.kept, noisy, self.constant)

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return float32 of the numbers that are stored; constants are the same in all records."""
        return 4.0 * float(self.kept.sum())

    def _scale(self, rho: Tensor) -> Tensor:
        return (1 + rho.tanh()) / 2 * (self.largest - self.smallest) + self.smallest
