"""Local differential privacy: clipped numbers with Laplace noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.networks import channel_statistics
from bench.registry import DEFENSES
from defenses.base import Defender, Defense, draw_like


@DEFENSES.register("ldp-laplace")
@dataclass
class LDPLaplace(Defense):
    """Clipping and Laplace noise, with a stated budget (Dwork et al., TCC 2006).

    Every number is clipped to `clip` deviations around the mean of its channel, so it can change by
    at most 2 clip deviations: its sensitivity. Laplace noise of scale sensitivity / budget makes
    each number `budget`-differentially private. Numbers are protected one by one: a record of n
    numbers as a whole has the budget n * budget, far above what bounds anything for a map.

    Leaks: features, template. Secret: the draw, which nobody keeps. Known weakness: a face is in
    many numbers that depend on each other, so a decoder averages the noise away; at budgets that
    would protect the whole record recognition ends. Source: the paper; clipping per channel follows
    the usual practice for feature maps.

    Args:
        budget: Privacy budget epsilon of one number; less is more noise.
        clip: Where numbers are clipped, in deviations of their channel (number of a template) over
            the defender's images, from its mean. Taken to be public.
    """

    leaks = frozenset({Leak.FEATURES, Leak.TEMPLATE})
    weakest: ClassVar[Mapping[str, Any]] = {"budget": 1e9, "clip": 1e3}
    strongest: ClassVar[Mapping[str, Any]] = {"budget": 1e-6}

    budget: Annotated[float, Field(gt=0)] = 10.0
    clip: Annotated[float, Field(gt=0)] = 3.0

    def fit(self, world: Defender) -> None:
        """Measure mean and deviation of every channel."""
        clean = world.recognizer.leaking(world.leak, world.images)
        self.mean, self.deviation = channel_statistics(clean)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Clip, and add noise that is drawn anew for every record."""
        shape = (-1, *[1] * (x.ndim - 2))
        mean, reach = self.mean.reshape(shape), self.clip * self.deviation.reshape(shape)
        scale = 2 * reach / self.budget
        clipped = x.clamp(mean - reach, mean + reach)
        return clipped + scale * draw_like(x, generator, "laplace")
