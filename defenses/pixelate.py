"""Pixelation: the oldest control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defense


@DEFENSES.register("pixelate")
@dataclass
class Pixelate(Defense):
    """Means over square blocks of pixels.

    Leaks: image. Secrets: none. Matched after enlargement by the unchanged recogniser. Known
    weakness: a network trained on pairs restores a face from it, and the recogniser goes blind
    before a person does.

    Args:
        block: Side of a block in pixels.
    """

    leaks = frozenset({Leak.IMAGE})

    block: Literal[2, 4, 7, 8, 14, 16] = 8

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 3, 112 / block, 112 / block) means."""
        return functional.avg_pool2d(x, self.block)

    def comparable(self, records: Tensor) -> Tensor:
        """Enlarge to 112x112 and embed."""
        return self.recognizer.embed(functional.interpolate(records, (112, 112), mode="bilinear"))
