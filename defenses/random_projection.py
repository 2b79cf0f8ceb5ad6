"""Random projection: a template becomes fewer numbers under a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.keyed import Key, Keyed


@DEFENSES.register("random-projection")
@dataclass
class RandomProjection(Keyed):
    """A random orthonormal projection, without quantisation (Teoh and Yuang, IEEE TSMC-B 2007).

    Leaks: template. Secret: the projection. Score: cosine. Known weakness: linear; with the key the
    pseudo-inverse gives back the part of the template in the subspace, and a few known pairs of
    template and record give the key. Source: the paper's abstract.

    Args:
        numbers: Numbers kept; all of them make a rotation. At most the length of the template.
    """

    leaks = frozenset({Leak.TEMPLATE})

    numbers: Annotated[int, Field(ge=1)] = 64

    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw an orthonormal (size, numbers) matrix."""
        if self.numbers > size:
            raise ValueError(f"random-projection needs numbers <= {size}, the template's length")
        matrix = torch.randn(size, self.numbers, generator=generator, dtype=torch.float64)
        return (torch.linalg.qr(matrix).Q.float(),)

    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, numbers)."""
        return x @ key[0]

    def undo(self, codes: Tensor, key: Key) -> Tensor:
        """Return the part of the template in the subspace."""
        return codes @ key[0].T
