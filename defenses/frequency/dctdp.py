"""DCTDP: block DCT without DC, under Laplace noise of a privacy budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.adapted import Adapted
from defenses.base import Defender, draw_like
from defenses.frequency import block_dct


@DEFENSES.register("dctdp")
@dataclass
class DCTDP(Adapted):
    """DCTDP (Ji et al., ECCV 2022, arXiv 2207.07316): no DC, then Laplace noise per coefficient.

    Leaks: image. Secrets: the noise, drawn per record. The scale of a coefficient's noise
    is sensitivity / epsilon, where all 189 x 112 x 112 of them share a budget. The released code
    (Tencent TFace, recognition/tasks/dctdp) takes a sensitivity of 1 for every coefficient, so its
    epsilon is no calibrated one; "measured" takes each coefficient's range over the defender's
    images, as the definition of local differential privacy asks for. There the budget's split is
    learned with the recogniser; here it stays where that starts, even. Known weakness: the map is
    8 times over-complete, so least squares averages the noise away.

    Args:
        epsilon: Mean budget of a coefficient; 4 in the released code.
        sensitivity: "ones" as released, or "measured".
    """

    leaks = frozenset({Leak.IMAGE})

    epsilon: Annotated[float, Field(gt=0)] = 4.0
    sensitivity: Literal["ones", "measured"] = "ones"

    def fit(self, world: Defender) -> None:
        """Measure the range of every coefficient, if it is asked for."""
        super().fit(world)
        self.scale = torch.ones((), device=world.device) / self.epsilon
        if self.sensitivity == "measured":
            # Batch by batch: a thousand images of coefficients are ten gigabytes.
            low = high = self._transform(world.images[:1])[0]
            for batch in world.images.split(32):
                made = self._transform(batch)
                low, high = torch.minimum(low, made.amin(0)), torch.maximum(high, made.amax(0))
            self.scale = (high - low) / self.epsilon

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 189, 112, 112) coefficients with noise, color by color."""
        made = self._transform(x)
        return made + self.scale * draw_like(made, generator, "laplace")

    def hypotheses(self) -> list[list[int]]:
        """Return the channels of a color that a record may hold, in order."""
        return [list(block_dct.WITHOUT_DC)]

    def _transform(self, images: Tensor) -> Tensor:
        return block_dct.forward(images, block_dct.WITHOUT_DC)
