"""Random noise: the control that every adversarial noise must beat at the same size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.networks import channel_statistics
from bench.registry import DEFENSES
from defenses.base import Defender, Defense, draw_like


@dataclass
class Noise(Defense):
    """Additive noise, scaled by the deviation of every channel over the defender's images.

    Args:
        eps: Size of the noise in deviations of its channel (features) or number (template).
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    weakest: ClassVar[Mapping[str, Any]] = {"eps": 0}
    strongest: ClassVar[Mapping[str, Any]] = {"eps": 1e6}
    kind: ClassVar[Literal["normal", "laplace", "sign"]]

    eps: Annotated[float, Field(ge=0)] = 0.6

    def fit(self, world: Defender) -> None:
        """Measure the deviation of every channel; it is no secret."""
        clean = world.recognizer.leaking(world.leak, world.images)
        self.deviation = channel_statistics(clean)[1]

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Add noise that is drawn anew for every record."""
        scale = self.eps * self.deviation.reshape(-1, *[1] * (x.ndim - 2))
        return x + scale * draw_like(x, generator, self.kind)


@DEFENSES.register("gaussian-noise")
@dataclass
class GaussianNoise(Noise):
    """Gaussian noise of deviation eps times the channel's.

    Leaks: features, template. Secret: the draw, which nobody keeps. Known weakness: an attacker
    that trains on noisy records learns to denoise, and the mean over several records converges.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    kind = "normal"


@DEFENSES.register("laplace-noise")
@dataclass
class LaplaceNoise(Noise):
    """Laplace noise of deviation eps times the channel's (scale eps / sqrt 2).

    Leaks: features, template. Secret: the draw. This is no differential privacy: nothing is
    clipped, so the sensitivity is unbounded. Known weakness: as for Gaussian noise.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    kind = "laplace"

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Add noise that is drawn anew for every record."""
        # A Laplace variable of scale 1 has deviation sqrt 2.
        return x + (super().protect(x, generator=generator) - x) / 2**0.5


@DEFENSES.register("sign-noise")
@dataclass
class SignNoise(Noise):
    """Random signs of size eps times the channel's deviation: AdvFace's ball, not its direction.

    Leaks: features, template. Secret: the draw. Known weakness: a decoder trained on clean maps
    hardly notices it (SSIM .950 against .966 at eps .6 on LFW).
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    kind = "sign"
