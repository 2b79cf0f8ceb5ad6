"""PEEP: eigenface coefficients with Laplace noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from bench.subspace import FaceSubspace
from defenses.base import Defender, Defense, draw_like


@DEFENSES.register("peep")
@dataclass
class PEEP(Defense):
    """Perturbed eigenfaces under local differential privacy (Chamikara et al., 2005.10486).

    An image becomes coefficients of the principal components of the defender's images. Each is
    clipped to `clip` deviations around the mean, so its sensitivity is 2 clip deviations, and gets
    Laplace noise of scale sensitivity / budget. The record is shown as the image that the
    coefficients make.

    Leaks: image. Secret: the draw, which nobody keeps. The budget is that of one coefficient: an
    image as a whole has components * budget. Known weakness: at budgets that leave recognition, the
    leading components show the face; noise of single coefficients is averaged by a network trained
    on records. Source: the paper's abstract; the budget 5 is that of comparisons in the literature
    (MinusFace, Table 1), the clipping is ours.

    Args:
        budget: Privacy budget epsilon of one coefficient; less is more noise.
        components: Principal components, at most the number of the defender's images less one.
        clip: Where coefficients are clipped, in deviations.
    """

    leaks = frozenset({Leak.IMAGE})
    strongest: ClassVar[Mapping[str, Any]] = {"budget": 1e-6}

    budget: Annotated[float, Field(gt=0)] = 5.0
    components: Annotated[int, Field(ge=1)] = 128
    clip: Annotated[float, Field(gt=0)] = 3.0

    def fit(self, world: Defender) -> None:
        """Find the eigenfaces; they are no secret."""
        self.space = FaceSubspace(world.images, self.components)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 3, 112, 112) images of noisy coefficients, in [0, 1]."""
        clipped = self.space.coordinates(x).clamp(-self.clip, self.clip)
        noise = draw_like(clipped, generator, "laplace")
        return self.space.faces(clipped + 2 * self.clip / self.budget * noise)

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return float32 of the coefficients."""
        return 4.0 * len(self.space)
