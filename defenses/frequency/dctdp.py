"""DCTDP: block DCT without DC, under Laplace noise of a privacy budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bench.leaks import Leak
from bench.networks import channel_statistics, half_precision
from bench.registry import DEFENSES
from bench.training import fit
from defenses.adapted import STEM_IMAGES, Adapted, Server, regress_stem
from defenses.base import Defender, draw_like
from defenses.frequency import block_dct

BATCH = 8
"""Images per training step of the budget's split: each has 189 channels at 112x112."""


@DEFENSES.register("dctdp")
@dataclass
class DCTDP(Adapted):
    """DCTDP (Ji et al., ECCV 2022, arXiv 2207.07316): no DC, then Laplace noise per coefficient.

    Leaks: image. Secrets: the noise, drawn per record. The scale of a coefficient's noise is
    sensitivity / epsilon, where all 189 x 112 x 112 of them share a budget. The released code
    (Tencent TFace, recognition/tasks/dctdp) takes a sensitivity of 1 for every coefficient, so its
    epsilon is no calibrated one; "measured" takes each coefficient's range over the defender's
    images, as the definition of local differential privacy asks for. The results say which epsilon
    the noise then has by the measured ranges, per coefficient and for an image, whose epsilons add
    up. The split of the budget and a shift of every coefficient are learned from an even split and
    0; there together with the recogniser, here before it, against the ridge stem. Known weakness:
    the map is 8 times over-complete, so least squares averages the noise away.

    Args:
        epsilon: Mean budget of a coefficient; 4 in the released code.
        sensitivity: "ones" as released, or "measured".
        split_epochs: Passes over the defender's images to learn the split; 0 leaves it even.
        split_rate: Largest learning rate of the split; .1 in the released code.
    """

    leaks = frozenset({Leak.IMAGE})

    epsilon: Annotated[float, Field(gt=0)] = 4.0
    sensitivity: Literal["ones", "measured"] = "ones"
    split_epochs: Annotated[int, Field(ge=0)] = 0
    split_rate: Annotated[float, Field(gt=0)] = 0.1

    def fit(self, world: Defender) -> None:
        """Measure the range of every coefficient, and learn the split, if it is asked for."""
        super().fit(world)
        # Batch by batch: a thousand images of coefficients are ten gigabytes.
        low = high = _transform(world.images[:1])[0]
        for batch in world.images.split(32):
            made = _transform(batch)
            low, high = torch.minimum(low, made.amin(0)), torch.maximum(high, made.amax(0))
        ranges = high - low
        sensitivity = ranges if self.sensitivity == "measured" else torch.ones_like(ranges)
        budget = Budget(sensitivity, self.epsilon)
        if self.split_epochs:
            world.teach("budget", budget, partial(self._learn, budget, world))
        budget.requires_grad_(False)
        self.scale, self.shift = budget.scale(), budget.shift
        # On gray images the coefficients of color never change, and cost nothing.
        self._epsilons = (ranges / self.scale)[ranges > 0]

    @property
    def found(self) -> dict[str, float]:
        """Epsilon by the ranges measured, of coefficients that change: their mean and sum."""
        return {
            "epsilon-per-coefficient": float(self._epsilons.mean()),
            "epsilon-per-image": float(self._epsilons.double().sum()),
        }

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 189, 112, 112) coefficients with noise, color by color."""
        made = _transform(x).add_(self.shift)
        return made.add_(draw_like(made, generator, "laplace").mul_(self.scale))

    def hypotheses(self) -> list[list[int]]:
        """Return the channels of a color that a record may hold, in order."""
        return [list(block_dct.WITHOUT_DC)]

    def _learn(self, budget: Budget, world: Defender, checkpoint: Path | None) -> None:
        images = world.images
        target = world.recognizer.leaking(Leak.TEMPLATE, images)

        def represent(batch: Tensor) -> Tensor:
            made = _transform(batch)
            noisy: Tensor = budget(made, draw_like(made, torch.default_generator, "laplace"))
            return noisy

        with torch.no_grad():
            statistics = channel_statistics(represent(images[:STEM_IMAGES]))
        server = Server(world.recognizer, *statistics).to(world.device).requires_grad_(False)
        regress_stem(server, represent, images)

        def batch_loss() -> Tensor:
            rows = torch.randint(len(images), (BATCH,))
            noisy = represent(images[rows])
            with half_precision(world.device):
                found = server(noisy)
            return 1 - functional.cosine_similarity(found.float(), target[rows]).mean()

        steps = self.split_epochs * -(-len(images) // BATCH)
        fit(
            budget,
            batch_loss,
            steps=steps,
            rate=self.split_rate,
            checkpoint=checkpoint,
        )


class Budget(nn.Module):
    """A privacy budget shared by coefficients: even and without a shift at first.

    Args:
        sensitivity: (C, H, W) by how much a coefficient differs between images at most.
        epsilon: Mean budget of a coefficient.
    """

    def __init__(self, sensitivity: Tensor, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("sensitivity", sensitivity)
        self.total = epsilon * sensitivity.numel()
        self.share = nn.Parameter(torch.zeros_like(sensitivity))
        self.shift = nn.Parameter(torch.zeros_like(sensitivity))

    def scale(self) -> Tensor:
        """Return the scale (C, H, W) of the noise."""
        shares = self.share.flatten().softmax(0).reshape(self.share.shape)
        return self.get_buffer("sensitivity") / (shares * self.total)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return coefficients (N, C, H, W) with Laplace noise of mean 0 and scale 1 scaled."""
        return x + self.shift + self.scale() * noise


def _transform(images: Tensor) -> Tensor:
    return block_dct.forward(images, block_dct.WITHOUT_DC)
