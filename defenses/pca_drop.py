"""Fewer principal components: less is stored of a template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defender, Defense


@DEFENSES.register("pca-drop")
@dataclass
class PCADrop(Defense):
    """The leading principal components of a template; the others are dropped.

    The plainest form of storing less: a control beside the schemes with keys.

    Leaks: template. Secrets: none; the components belong to the defender's images but are taken to
    be public. Known weakness: what is kept is what varies most, and is inverted as the whole
    template is.

    Args:
        numbers: Components kept, at most the length of the template; all of them lose nothing.
    """

    leaks = frozenset({Leak.TEMPLATE})

    numbers: Annotated[int, Field(ge=1)] = 64

    def fit(self, world: Defender) -> None:
        """Find the components over the defender's images."""
        templates = world.recognizer.leaking(Leak.TEMPLATE, world.images)
        size = templates.shape[1]
        if self.numbers > size:
            raise ValueError(f"pca-drop needs numbers <= {size}, the length of the template")
        centered = (templates - templates.mean(0)).double()
        _, vectors = torch.linalg.eigh(centered.T @ centered)
        self.components = vectors.flip(1)[:, : self.numbers].float()

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, numbers)."""
        return x @ self.components

    @property
    def plain_probes(self) -> bool:
        """A probe is cut down to the same components."""
        return False
