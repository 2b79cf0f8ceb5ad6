"""AdvFace: adversarial noise on the stored feature map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.metrics import verification_accuracy
from bench.networks import MapDecoder, channel_statistics, half_precision, train
from bench.registry import DEFENSES
from bench.threats import Pairs
from defenses.base import Defender, Defense, draw_like


@DEFENSES.register("advface")
@dataclass
class AdvFace(Defense):
    """Adversarial latent noise against a shadow decoder (Wang et al., CVPR 2023, arXiv 2305.05391).

    The server trains a shadow model that turns maps into images, as an attacker would, and stores
    each map with the noise, inside a ball, that spoils the shadow's image most. The recogniser is
    unchanged; a fresh probe carries no noise.

    Leaks: features. Secrets: the shadow model and the random start. There is no public code and the
    text leaves the objective open, so three readings are offered; eps, steps and step size are not
    the paper's (it gives none that could be checked). Known weaknesses: an attacker that trains on
    records of shadows of its own undoes the noise (SSIM .48 -> .95 on LFW), and what still matches
    can be inverted through the recogniser's own tail.

    Args:
        eps: Radius of the L-infinity ball, in deviations of the channel over the defender's images.
        reading: "direct" maximises |S(z + d) - S(z)|; "shadow-feature" (the paper's Figure 2, taken
            literally) maximises |S(F(S(z)) + d) - S(z)| and stores z + d; "cyclic" (MinusFace's
            words) maximises |S(F(S(z + d))) - S(z)|. S is the shadow, F the recogniser's head.
        steps: Sign steps, each of 2.5 eps / steps.
        shadow_width: Channels of the shadow model.
        shadow_steps: Training steps of the shadow model, 32 images each.
        accuracy_drop: If given, eps is not used: the largest eps is searched at which verification
            accuracy on the defender's own images falls by no more than this.
    """

    leaks = frozenset({Leak.FEATURES})

    eps: Annotated[float, Field(ge=0)] = 0.6
    reading: Literal["direct", "shadow-feature", "cyclic"] = "direct"
    steps: Annotated[int, Field(ge=1)] = 10
    shadow_width: Annotated[int, Field(ge=4)] = 16
    shadow_steps: Annotated[int, Field(ge=1)] = 150
    accuracy_drop: Annotated[float, Field(gt=0, lt=1)] | None = None

    def fit(self, world: Defender) -> None:
        """Train the shadow model on the defender's images, and find eps if a drop is wanted."""
        self.device = world.device
        maps = world.recognizer.leaking(Leak.FEATURES, world.images)
        mean, self.deviation = channel_statistics(maps)
        decoder = MapDecoder(maps.shape[1:], self.shadow_width, mean, self.deviation)
        self.shadow = train(
            decoder,
            [Pairs(maps, world.images)],
            steps=self.shadow_steps,
            rate=2e-3,
            device=world.device,
        )
        if self.accuracy_drop is not None:
            self.eps = self._calibrated(world, maps, self.accuracy_drop)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return maps with adversarial noise, (N, C, H, W)."""
        radius = self.eps * self.deviation.reshape(-1, 1, 1)
        step = 2.5 * radius / self.steps
        # The direct reading has no gradient at zero noise, so all of them start beside it.
        noise = 0.1 * radius * (2 * draw_like(x, generator, "uniform") - 1)
        spoiled, target = self._objective(x)
        for _ in range(self.steps):
            noise = noise.detach().requires_grad_()
            with torch.enable_grad():
                distance = functional.l1_loss(spoiled(noise), target, reduction="sum")
                (gradient,) = torch.autograd.grad(distance, noise)
            noise = (noise + step * gradient.sign()).clamp(-radius, radius)
        return x + noise.detach()

    def _objective(self, z: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return the shadow's image as a function of the noise, and the image to depart from."""
        with torch.no_grad():
            target = self._decode(z)
        match self.reading:
            case "direct":
                return lambda noise: self._decode(z + noise), target
            case "shadow-feature":
                with torch.no_grad():
                    shadow_feature = self.recognizer.head(target)
                return lambda noise: self._decode(shadow_feature + noise), target
            case "cyclic":
                return lambda noise: self._cycle(z + noise), target

    def _cycle(self, z: Tensor) -> Tensor:
        return self._decode(self.recognizer.head(self._decode(z)))

    def _decode(self, z: Tensor) -> Tensor:
        with half_precision(self.device):
            images: Tensor = self.shadow(z)
        return images

    def _calibrated(self, world: Defender, maps: Tensor, drop: float) -> float:
        """Return the largest eps, to 1/64, whose accuracy stays within the wanted drop."""
        clean = self._accuracy(world, maps, 0)
        low, high = 0.0, 4.0
        while high - low > 1 / 64:
            middle = (low + high) / 2
            if self._accuracy(world, maps, middle) >= clean - drop:
                low = middle
            else:
                high = middle
        return low

    def _accuracy(self, world: Defender, maps: Tensor, eps: float) -> float:
        """Return the accuracy of stored maps against fresh ones, over all pairs of images."""
        trial = dataclasses.replace(self, eps=eps, accuracy_drop=None)
        trial.__dict__.update(
            {name: value for name, value in vars(self).items() if name not in trial.parameters}
        )
        generator = world.generator()
        records = torch.cat([trial.protect(z, generator=generator) for z in maps.split(32)])
        with torch.no_grad():
            stored = torch.cat([self.recognizer.tail(z) for z in records.split(32)])
            fresh = torch.cat([self.recognizer.tail(z) for z in maps.split(32)])
        left, right = np.triu_indices(len(maps), k=1)
        same = world.identities[left] == world.identities[right]
        scores = (stored @ fresh.T).cpu().numpy()[left, right]
        folds = np.arange(len(scores)) % 10
        return float(verification_accuracy(scores, same, folds).mean)

    def fresh(self) -> Self:
        """Return an instance without a shadow, with the eps that was found."""
        return dataclasses.replace(self, accuracy_drop=None)
