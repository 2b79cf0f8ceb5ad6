"""PartialFace: a random subset of high-frequency channels per image."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.adapted import Adapted
from defenses.base import Defender
from defenses.frequency import block_dct

DROPPED = (0, 1, 2, 3, 8, 9, 10, 16, 17, 24)
"""The ten low frequencies of a color, i + j <= 3, that the client keeps to itself."""

KEPT = tuple(channel for channel in block_dct.ALL if channel not in DROPPED)

RELEASED_SUBSETS = (
    (1, 24, 28, 12, 32, 45, 47, 40, 52),
    (35, 39, 44, 42, 10, 4, 37, 31, 53),
    (0, 50, 19, 6, 22, 51, 49, 23, 21),
    (38, 8, 25, 13, 17, 30, 7, 33, 9),
    (26, 29, 16, 2, 43, 14, 5, 11, 48),
    (36, 41, 46, 34, 15, 27, 18, 20, 3),
)
"""Six subsets of 9 of the 54 kept channels, by position among them (TFace, partialface)."""

RELEASED_ORDERS = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8),
    (7, 3, 0, 6, 5, 4, 1, 2, 8),
    (4, 8, 6, 0, 2, 5, 3, 7, 1),
)
"""Three orders of the 9 channels (TFace, partialface)."""


@DEFENSES.register("partialface")
@dataclass
class PartialFace(Adapted):
    """PartialFace (Mi et al., ICCV 2023): 9 of 54 channels per color, subset and order at random.

    Leaks: image. Every image is sent as one of six fixed subsets of the high-frequency channels, in
    one of a few fixed orders, both drawn per image. Secrets: the draw. The tables behind it are
    fixed for everybody in the code (Tencent TFace, recognition/tasks/partialface); with "secret" an
    instance draws a partition and orders of its own, which an insider (the paper's white box) knows
    and an adaptive attacker (its black box) does not. The released code lets a person's label
    restrict the subsets to 3 of the 6; here every image may have any. Known weaknesses: the right
    subset and order leave the smallest residual in least squares, and several images of one person
    add up.

    Args:
        tables: "released", or "secret".
        orders: Orders of the channels; 6 in the paper, 3 in the released code.
    """

    leaks = frozenset({Leak.IMAGE})

    tables: Literal["released", "secret"] = "released"
    orders: Annotated[int, Field(ge=1, le=6)] = 3

    def fit(self, world: Defender) -> None:
        """Draw the tables, if they are secret."""
        super().fit(world)
        subsets, orders = torch.tensor(RELEASED_SUBSETS), torch.tensor(RELEASED_ORDERS)
        if self.tables == "secret" or self.orders > len(orders):
            generator = world.generator()
            drawn = torch.stack([torch.randperm(9, generator=generator) for _ in range(6)])
            orders = torch.cat([orders, drawn]) if self.tables == "released" else drawn
            if self.tables == "secret":
                subsets = torch.randperm(len(KEPT), generator=generator).reshape(6, 9)
        kept = torch.tensor(KEPT)
        self.choices = torch.stack(
            [kept[subset[order]] for subset, order in product(subsets, orders[: self.orders])]
        )

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 27, 112, 112) coefficients, color by color."""
        drawn = torch.randint(len(self.choices), (len(x),), generator=generator)
        return torch.cat(
            [
                block_dct.forward(image, self.choices[choice].tolist())
                for image, choice in zip(x.split(1), drawn, strict=True)
            ]
        )

    def hypotheses(self) -> list[list[int]]:
        """Return the channels of a color that a record may hold, in order."""
        return [choice.tolist() for choice in self.choices]
